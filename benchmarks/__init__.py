"""One runnable module a question: ``python -m benchmarks.NAME``. Results go to ``benchmarks/results``."""

from indexer.runtime import prepare

prepare()
