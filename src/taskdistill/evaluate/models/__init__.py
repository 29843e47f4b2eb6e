"""The embedders that can be scored: model folders, the teacher store, endpoints, vectors."""
