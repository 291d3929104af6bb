"""Training of fill-in-the-middle SQL completion models: data, packing, training, evaluation. Independent of Dagster."""

import os

__version__ = "0.1.0"

# By default OpenMP's threads spin while they wait for each other. On a CPU that also does other work, each parallel
# region of a few microseconds may then wait for a whole time slice, so the threads sleep instead. The variable is read
# once, when torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
