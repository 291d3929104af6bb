"""What assets need at run time."""
