"""A Dagster project with two completion models."""
