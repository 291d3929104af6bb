"""Layouts of the artifacts' folders: the only place that knows their file names."""
