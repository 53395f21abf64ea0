"""What a space can decide: one object for each kind of knob, in one registry. Imports `core` and `spaces.policies`."""
