"""Tables of the documentation, made from committed rows."""
