"""slimfront: the Pareto front of slim models."""
