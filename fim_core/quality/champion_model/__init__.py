"""Checks of champion_model, one SQL or Python file per check."""
