"""Atomic writes of files, and folders with one writer at a time."""
