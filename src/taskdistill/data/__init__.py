"""Rows from files, the embedded default data, and batches as a pure function of the seed and the
step.
"""
