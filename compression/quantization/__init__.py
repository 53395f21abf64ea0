"""Weights and activations on grids of few bits, post-training. May import `spaces` and what `compression/` shares."""
