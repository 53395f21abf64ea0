"""One point of a space: what happens to each layer, as versioned JSON. Imports `core` only."""
