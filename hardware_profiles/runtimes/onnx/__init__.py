"""ONNX files with Q/DQ pairs, and OpenVINO and ONNX Runtime, which run them."""

import sys

# Without this OpenVINO sends usage statistics at each import, and complains where the home folder is read-only.
sys.modules.setdefault("openvino_telemetry", None)  # pyright: ignore[reportArgumentType]
