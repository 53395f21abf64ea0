"""The revisions of the database's tables, one module each, in the order of their numbers."""
