"""Runtimes on an NVIDIA GPU: TensorRT, built of an ONNX file, and PyTorch. May import `runtimes/onnx` and `runtimes/torch`."""
