"""Weights in one file of the fewest bytes. May import `spaces`."""
