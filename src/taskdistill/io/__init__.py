"""Everything that touches a disk format."""
