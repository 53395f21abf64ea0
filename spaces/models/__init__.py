"""What a torch model is made of: layers, blocks, channel groups. May import `policies`."""

import sys
import warnings
from importlib import import_module


def _import_libraries() -> None:
    """Import fvcore without its warning, and Torch-Pruning without timm: it would import timm, which takes a second, only for a
    count of operations that nothing here calls."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of `torch.jit.script`, which fvcore calls when imported
        import_module("fvcore.nn")
    if "timm" in sys.modules:
        return
    sys.modules["timm"] = None  # pyright: ignore[reportArgumentType]  # an import of it fails, as if it were not installed
    try:
        import_module("torch_pruning")
    finally:
        if sys.modules["timm"] is None:
            del sys.modules["timm"]


_import_libraries()
