"""Checks of trained_checkpoint: a SQL or Python file each."""
