"""The Optuna study of a search, whose storage only it touches, and Optuna's samplers. May import `sampler` and `trials`."""
