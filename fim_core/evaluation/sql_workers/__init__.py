"""The measures on SQL that nobody has vouched for, taken in processes with hard limits of memory and time."""
