"""Files that are written whole or not at all, and folders that have one writer at a time."""
