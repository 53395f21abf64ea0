"""How the ONNX exporter names the module that made a node, and back."""

from __future__ import annotations


def scope(path: str) -> str:
    """The node-name prefix of the module `path`: "layer1.0.conv1" is "/layer1/layer1.0/conv1"."""
    segments: list[str] = []
    for part in path.split(".") if path else []:
        segments.append(f"{segments[-1]}.{part}" if part.isdigit() and segments else part)
    return "".join(f"/{segment}" for segment in segments)


def layer_of_node(name: str) -> str:
    """The dotted module path in a node name such as "/layer1/layer1.0/conv1/Conv"; the inverse of `scope`."""
    parts: list[str] = []
    previous = ""
    for segment in name.strip("/").split("/")[:-1]:
        parts.append(segment.removeprefix(f"{previous}.") if previous else segment)
        previous = segment
    return ".".join(parts)
