"""The index on disk: immutable segments, manifests and commits."""
