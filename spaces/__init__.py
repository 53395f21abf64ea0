"""Floor 1: what may be chosen. Layers and channel groups of a model, knobs, the space, the policy."""
