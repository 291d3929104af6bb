"""A benchmark of our own: executable SQL with holes, to compare models by. Public infilling sets have no SQL."""
