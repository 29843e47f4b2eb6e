"""One file for each family of loss terms."""
