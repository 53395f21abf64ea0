"""The files of trials: rows of the database over contents of an artifact store, and what the small ones say."""
