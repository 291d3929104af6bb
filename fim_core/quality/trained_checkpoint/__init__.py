"""Checks of trained_checkpoint, one SQL or Python file per check."""
