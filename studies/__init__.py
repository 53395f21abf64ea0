"""Floor 4: what was asked and what was found. Study files, the store, the front, picks and export."""
