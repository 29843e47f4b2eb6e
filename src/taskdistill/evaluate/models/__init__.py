"""The embedders that can be scored: model folders, the teacher store, endpoints and stored vectors."""
