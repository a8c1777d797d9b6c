"""One runnable module a question: ``python -m benchmarks.NAME``. Results go to ``benchmarks/results``."""
