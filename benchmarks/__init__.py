"""One runnable module a question: ``python -m benchmarks.NAME``. Results go to ``benchmarks/results``."""

import indexer  # noqa: F401  sets the process up, which must come before torch is imported
