"""Train fill-in-the-middle SQL completion models: data, packing, training, evaluation. Knows nothing of Dagster."""

import os

__version__ = "0.1.0"

# OpenMP's threads spin while they wait for each other, so on a CPU that also does other work each region of a few
# microseconds may wait for a whole time slice. They sleep instead. Read once, when torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
