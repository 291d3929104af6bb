"""Checks of raw_completions, one SQL or Python file per check."""
