"""The recovery of a trial, in the worker's own process or in one process a GPU."""
