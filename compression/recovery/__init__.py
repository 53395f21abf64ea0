"""Recovery of quality after compression: training, distillation, and steps without labels. May import `pruning` and `quantization`."""
