"""The devices that a study may compute on, by the names of its file."""

from typing import Literal

DeviceKind = Literal["auto", "cpu", "cuda"]
"""Where a study computes: "auto" is a CUDA GPU where this process sees one, and else wherever the workload's own model is."""
