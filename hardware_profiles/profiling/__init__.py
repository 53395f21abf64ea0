"""Measuring a machine, and predicting latency from what was measured. May import `cards`, `runtimes` and `bench`."""
