"""Teachers (local, HTTP, precomputed) and the store in which each distinct text is
embedded once.
"""
