"""The Optuna study of a search; the only place its storage is touched."""
