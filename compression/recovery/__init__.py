"""What brings quality back: training, distillation, steps without labels. May import `pruning` and `quantization`."""
