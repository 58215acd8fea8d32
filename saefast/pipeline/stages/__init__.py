"""The stages of a run, a module for each: from files to files."""
