"""The command line: argv to calls; the only place that prints or reads the environment."""
