"""TensorFlow Lite files and LiteRT, which runs them.

May import `runtimes/onnx`, whose float graph they start from.
"""
