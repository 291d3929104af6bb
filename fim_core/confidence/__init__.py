"""Confidence in completions, and the filter that shows only those with enough of it."""
