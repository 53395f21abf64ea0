"""Post-training quantization of weights and activations. May import `spaces` and what `compression/` shares."""
