"""Cost of a training before it starts: memory, exchanged bytes and time for a number of ranks."""
