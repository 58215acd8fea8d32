"""Stages of a run, one module for each, which read and write files."""
