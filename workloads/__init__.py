"""Floor 1: what is compressed. Built-in models and data, and the user's own."""
