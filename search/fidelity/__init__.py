"""Which trials are worth more training: rungs and successive halving. May import `trials` and `sampler`."""
