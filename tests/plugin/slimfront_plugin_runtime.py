"""A runtime: ONNX Runtime under another name; `ENTRY` is all that is read of it until it runs."""

from __future__ import annotations

from slimfront.hardware_profiles.runtimes.registry import RuntimeEntry

ENTRY = RuntimeEntry(
    "slimfront_plugin_runtime", "PlainRuntime", "slimfront-plugin", loader="slimfront_plugin_runtime:load_plain"
)


def load_plain(path: str, threads: int):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return lambda inputs: dict(zip(names, session.run(names, dict(inputs)), strict=True))


def __getattr__(name: str):
    if name != "PlainRuntime":
        raise AttributeError(name)
    from slimfront.hardware_profiles.runtimes.onnx.onnxruntime_runtime import OnnxRuntime

    class PlainRuntime(OnnxRuntime):
        name = "plain"

    return PlainRuntime
