"""Checks of raw_completions: a SQL or Python file each."""
