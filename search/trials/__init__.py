"""One trial, top to bottom: the prepared study, the baseline, the worker. May import `cluster`."""
