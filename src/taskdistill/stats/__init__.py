"""Intervals, paired tests, contrasts and power: the one place that says how sure a number is."""
