"""Tables of the documentation that are made from several files of committed rows."""
