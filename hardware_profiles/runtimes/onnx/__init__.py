"""ONNX files with Q/DQ pairs, and OpenVINO and ONNX Runtime, which run them."""
