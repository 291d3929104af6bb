"""Instances of the component, one folder for each."""
