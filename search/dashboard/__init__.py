"""optuna-dashboard over the store's database. May import all of `search` but `run`."""
