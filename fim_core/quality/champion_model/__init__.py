"""Checks of champion_model: a SQL or Python file each."""
