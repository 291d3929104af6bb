"""The `fim` command."""
