"""Losses: tensors in, scalar out; no model."""
