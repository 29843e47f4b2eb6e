"""taskdistill: distil a text-embedding teacher into a compact student with task adapters, and use it."""
