"""The embedded default data: docstrings of installed packages as training rows and
held-out sets.
"""
