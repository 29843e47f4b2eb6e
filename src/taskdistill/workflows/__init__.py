"""What a command does, one file each, without a terminal."""
