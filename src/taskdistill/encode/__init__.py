"""Encoding: the Encoder and its batches."""
