"""What the peers are made of: Torch-Pruning, NNCF, ONNX Runtime's quantizer, and a stopwatch for candidates."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import torch
from judge import accuracy, load, paired
from networks import Attention, VisionTransformer
from tasks import TASKS, export, fit, load_data, trained
from torch import Tensor, nn

ROUND_TO = 4  # channels: kernels take several at once


class Kit:
    """A task's folder with the tools that compress its network.

    Args:
        out: where files go.
    """

    def __init__(self, name: str, folder: Path, out: Path) -> None:
        self.name, self.folder, self.out, self.recipe = name, folder, out, TASKS[name].recipe
        self.data, self.model = load_data(folder), trained(name, folder)
        self.example, self.reference = self.data["train_x"][:1], folder / "reference.onnx"
        self.base = load(self.reference)
        out.mkdir(parents=True, exist_ok=True)

    def pruned(self, ratio: float, epochs: int) -> nn.Module:
        """The network without a part of its channels, fine-tuned."""
        torch.manual_seed(0)
        student = trained(self.name, self.folder)
        if ratio:
            prune(student, self.example, ratio)
        return fit(student, self.data, self.recipe, epochs, self.recipe.recovery_rate, teacher=self.model)

    def exported(self, network: nn.Module, label: str) -> Path:
        """OpenVINO's own format as its converter writes it by default: weights in 16 bits."""
        with tempfile.TemporaryDirectory() as folder:
            graph = ov.convert_model(export(network, self.example, Path(folder) / "model.onnx"))
        return self.saved(graph, label)

    def saved(self, graph: ov.Model, label: str) -> Path:
        path = self.out / f"{label}.xml"
        ov.save_model(graph, path)
        return path

    def quantized(self, source: Path, max_drop: float | None = None) -> ov.Model:
        """NNCF's 8 bits; with a bound, layers go back to floats until validation accuracy is within it."""
        import nncf

        graph = ov.Core().read_model(source)
        kind = nncf.ModelType.TRANSFORMER if isinstance(self.model, VisionTransformer) else None
        calibration = nncf.Dataset(self.rows("calibration"))
        if max_drop is None:
            return nncf.quantize(graph, calibration, subset_size=256, model_type=kind)
        pairs = list(zip(self.rows("validation"), self.data["validation_y"].numpy(), strict=True))
        return nncf.quantize_with_accuracy_control(
            graph,
            calibration,
            nncf.Dataset(pairs, lambda pair: pair[0]),
            lambda model, _: _score(model, pairs),
            max_drop=max_drop,
            subset_size=256,
            model_type=kind,
        )

    def rows(self, split: str) -> list[np.ndarray]:
        """The inputs of a split, each a batch of one."""
        return list(self.data[f"{split}_x"].numpy()[:, None])

    def onnxruntime(self, method: str) -> Path:
        """ONNX Runtime's 8 bits in the form with quantizers and dequantizers.

        Activations are unsigned, as its pages advise on x86: of its default, signed ones with a zero point, OpenVINO refuses to run
        convolutions where it takes bfloat16 for the rest.
        """
        from onnxruntime.quantization import CalibrationMethod, QuantType, quantize_static
        from onnxruntime.quantization.shape_inference import quant_pre_process

        prepared, path = self.out / "prepared.onnx", self.out / f"ort-{method.lower()}.onnx"
        quant_pre_process(self.reference, prepared)
        quantize_static(
            prepared,
            path,
            _Reader(prepared, self.rows("calibration")),
            per_channel=True,
            activation_type=QuantType.QUInt8,
            calibrate_method=CalibrationMethod[method],
        )
        prepared.unlink()
        return path

    def measured(self, path: Path) -> dict[str, float]:
        """Validation drop in points, and speed against the default deployment, as the engineer's own loop measures them."""
        model = load(path)
        images, classes = (self.data[f"validation_{part}"].numpy() for part in "xy")
        if not hasattr(self, "_whole"):
            self._whole = accuracy(self.base, images, classes)
        drop = 100 * (self._whole - accuracy(model, images, classes))
        return {"drop": drop, "speedup": paired(self.base, model, images[:1], rounds=51)["speedup"]}


class _Reader:
    """Calibration inputs in the form that ONNX Runtime asks for."""

    def __init__(self, model: Path, rows: list[np.ndarray]) -> None:
        import onnx

        name = onnx.load(model).graph.input[0].name
        self._rows = iter([{name: row} for row in rows])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._rows, None)


def _score(model: ov.CompiledModel, items: Sequence[Any]) -> tuple[float, list[float]]:
    right = [float(model(image)[0].argmax() == label) for image, label in items]
    return float(np.mean(right)), right


def prune(network: nn.Module, example: Tensor, ratio: float) -> None:
    """Remove channels of a CNN, or heads and hidden units of a Transformer, by the L2 norm of their weights."""
    import torch_pruning as tp

    ignored: list[nn.Module] = [network.get_submodule("fc")]
    if isinstance(
        network, VisionTransformer
    ):  # its graph of heads inside one projection is more than Torch-Pruning follows
        for module in network.modules():
            if isinstance(module, Attention):
                _drop_heads(module, ratio)
        leaves = (item for item in network.named_modules() if not list(item[1].children()))
        ignored += [module for name, module in leaves if not name.endswith("fc1")]
    importance = tp.importance.GroupMagnitudeImportance(p=2)
    tp.pruner.BasePruner(
        network, example, importance, pruning_ratio=ratio, round_to=ROUND_TO, ignored_layers=ignored
    ).step()


def _drop_heads(attention: Attention, ratio: float) -> None:
    norms = attention.out_proj.weight.detach().reshape(-1, attention.num_heads, attention.head_width).norm(dim=(0, 2))
    kept = max(1, round(attention.num_heads * (1 - ratio)))
    attention.keep_heads(sorted(norms.argsort(descending=True)[:kept].tolist()))
