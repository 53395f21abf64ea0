"""Floor 2: a policy applied to a model."""
