"""Launchers of training runs. Importing any module of this package registers those that need no Dagster."""

from fim_core.launchers import hostfile, local, ray

__all__ = ["hostfile", "local", "ray"]
