"""Floor 5: how the space is explored. The only place that imports optuna or ray."""
