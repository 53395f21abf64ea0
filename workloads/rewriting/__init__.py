"""Rewrites parts of a model as the layers that compute the same."""
