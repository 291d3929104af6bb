"""The experiment file as a typed model."""

from fim_core.config.base import portable
from fim_core.config.data import DataConfig, Source
from fim_core.config.experiment import Experiment, default_storage
from fim_core.config.experiment_file import load_experiment, read_experiment_file
from fim_core.config.model import ModelConfig

__all__ = [
    "DataConfig",
    "Experiment",
    "ModelConfig",
    "Source",
    "default_storage",
    "load_experiment",
    "portable",
    "read_experiment_file",
]
