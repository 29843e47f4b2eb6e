"""Export: what other programs load."""
