"""Where things lie."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
"""Of the checkout."""
REAL = ROOT.parent / "shared" / "data"
"""The real data; only where they are."""
ARTIFACTS = ROOT / "artifacts"
"""Pictures of what was tested."""
