"""PyTorch itself: PT2 archives, on a CPU or an NVIDIA GPU."""
