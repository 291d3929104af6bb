"""Publishing of champions to where models are taken from: folders, object storage, the hub, MLflow registries.

A promotion is recorded in the store first and published then, so that a failed publication loses nothing: it is an error,
and the next run, or `fim champion publish`, completes it. A model is published whole before anything points to it.
"""
