"""Serving: embeddings and search over HTTP."""
