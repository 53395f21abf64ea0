"""Floor 3: what a candidate is worth. Each evaluator turns a candidate into measurements."""
