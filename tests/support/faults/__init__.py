"""Faults tried on commands, thousands at a time: see ``python -m tests.support.faults --help``."""

import os

# before numpy is imported: who forks may have no thread beside its own
for _variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_variable] = "1"
