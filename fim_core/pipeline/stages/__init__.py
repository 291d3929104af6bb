"""The stages of the pipeline, one per module."""
