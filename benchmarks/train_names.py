"""Names of training methods that the front end and the measurement share."""

RECOMPUTED = ", activations recomputed"
