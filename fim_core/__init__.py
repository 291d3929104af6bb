"""Train fill-in-the-middle SQL completion models: data, packing, training, evaluation. Knows nothing of Dagster."""

__version__ = "0.1.0"
