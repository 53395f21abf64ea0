"""Floor 2: where a candidate runs. Target cards, runtimes, the bench."""
