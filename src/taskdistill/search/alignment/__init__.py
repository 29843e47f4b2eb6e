"""Maps between the spaces of two models, and the migration of an index by one."""
