"""Checks of tokenized_dataset: a SQL or Python file each."""
