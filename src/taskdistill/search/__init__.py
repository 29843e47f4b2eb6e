"""Search: an index of vectors on disk, hybrid ranking, refinement and tuning."""
