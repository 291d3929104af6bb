"""Names of the training methods, shared by the command line and the measurements."""

RECOMPUTED = ", activations recomputed"
