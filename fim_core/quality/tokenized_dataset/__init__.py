"""Checks of tokenized_dataset, one SQL or Python file per check."""
