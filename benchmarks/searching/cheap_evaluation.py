"""Policies scored in a fraction of a second, for comparing samplers over thousands of them; every score is kept on disk.

Channels are really removed and batch-norm re-estimated as in a trial; bits are simulated in float: weights symmetric per
output channel, activations affine per tensor with the range of the batch at hand. There is no recovery and no artifact, so
the figures compare samplers and say nothing of a target.
"""

import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from slimfront.compression.pruning.prune import is_structurally_changed, pruned_copy, reestimate_batch_norm
from slimfront.compression.recovery.outputs import output_kinds
from slimfront.search.sampler.dimensions import encode
from slimfront.search.sampler.study_terms import space_dimensions
from slimfront.search.sampler.surrogate.analytic_cost import COUNTED, AnalyticCost
from slimfront.search.trials.prepared_study import PreparedStudy
from slimfront.spaces.policies.layer_policy import FULL_PRECISION
from slimfront.spaces.policies.policy import Policy
from slimfront.workloads.metrics import TOP_K
from slimfront.workloads.named_metrics import make
from torch import Tensor, nn
from torch.utils.data import Subset


@dataclass(frozen=True)
class Scores:
    """The damage to the uncompressed outputs, of classifiers in nats, and the workload's metric, on the search-validation split."""

    kl: float
    accuracy: float


class CheapEvaluator:
    """Scores policies of one prepared study; `file` (JSON lines) holds what was scored before, by policy digest and split."""

    def __init__(self, prepared: PreparedStudy, file: Path) -> None:
        self._prepared, self._file = prepared, file
        workload = prepared.context.workload
        self._data = {"validation": stacked(workload.validation), "test": stacked(workload.test)}
        with torch.no_grad():
            model = workload.model.eval()
            self._reference = {split: model(inputs) for split, (inputs, _) in self._data.items()}
        self.cost = AnalyticCost(prepared.space, prepared.layers, workload.model, workload.example_input)
        lines = file.read_text().splitlines() if file.exists() else []
        self._known = {(row["digest"], row["split"]): row for row in map(json.loads, lines)}

    def scores(self, policy: Policy) -> Scores:
        """What a search sees of `policy`."""
        row = self._row(policy, "validation")
        return Scores(row["kl"], row["accuracy"])

    def bops(self, policy: Policy) -> float:
        """Of a point of the study's space."""
        space = self._prepared.space
        codes = encode(space_dimensions(space), space.parameters(policy))
        return float(self.cost(codes[None])[0, COUNTED.index("bops")])

    def test_accuracy(self, policy: Policy) -> float:
        """The workload's metric on the test split, which no search sees."""
        return self._row(policy, "test")["accuracy"]

    def seconds(self, policies: Sequence[Policy]) -> float:
        """Processor time of the median validation score, none read from the file."""
        taken = []
        for policy in policies:
            started = time.process_time()
            self._scored(policy, "validation")
            taken.append(time.process_time() - started)
        return statistics.median(taken)

    def _row(self, policy: Policy, split: str) -> dict:
        key = policy.digest, split
        if key not in self._known:
            self._known[key] = {"digest": policy.digest, "split": split, **self._scored(policy, split)}
            with self._file.open("a") as file:
                file.write(json.dumps(self._known[key]) + "\n")
        return self._known[key]

    @torch.no_grad()
    def _scored(self, policy: Policy, split: str) -> dict[str, float]:
        inputs, targets = self._data[split]
        outputs = self._compressed(policy)(inputs)
        workload = self._prepared.context.workload
        damage = output_kinds(workload).damage(outputs, self._reference[split]).mean()
        damage = float(damage) if torch.isfinite(damage) else 50.0
        return {"kl": min(damage, 50.0), "accuracy": metric_of(str(workload.metric), outputs, targets)}

    def _compressed(self, policy: Policy) -> nn.Module:
        workload = self._prepared.context.workload
        model = pruned_copy(workload.model, workload.example_input, policy, self._prepared.groups)
        if is_structurally_changed(policy, self._prepared.groups):
            reestimate_batch_norm(model, Subset(workload.calibration, range(50)))
        for name, layer in policy.layers.items():
            module = model.get_submodule(name)
            if layer.weight_bits < FULL_PRECISION:
                module.weight.data = _symmetric(module.weight.data, layer.weight_bits)
            if layer.activation_bits < FULL_PRECISION:
                bits = layer.activation_bits
                module.register_forward_pre_hook(lambda _, args, bits=bits: (_affine(args[0], bits), *args[1:]))
        return model


def _symmetric(weight: Tensor, bits: int) -> Tensor:
    most = 2 ** (bits - 1) - 1
    scale = weight.abs().flatten(1).amax(1).clamp_min(1e-12).reshape(-1, *[1] * (weight.ndim - 1)) / most
    return (weight / scale).round() * scale


def _affine(inputs: Tensor, bits: int) -> Tensor:
    low, high = inputs.min().clamp_max(0), inputs.max().clamp_min(0)
    scale = float((high - low).clamp_min(1e-12)) / (2**bits - 1)
    return torch.fake_quantize_per_tensor_affine(inputs, scale, round(-float(low) / scale), 0, 2**bits - 1)


def metric_of(name: str, outputs: Tensor, targets: Tensor) -> float:
    """A metric that is known by its name."""
    if name in TOP_K:
        best = outputs.topk(TOP_K[name], dim=1).indices
        return float((best == targets[:, None]).any(1).double().mean())
    metric, read = make(name, outputs, targets)
    metric.update(*read(outputs, targets))
    return float(metric.compute().mean())


def stacked(data: Sequence) -> tuple[Tensor, Tensor]:
    samples = [data[index] for index in range(len(data))]
    return torch.stack([x for x, _ in samples]), torch.stack([torch.as_tensor(y) for _, y in samples])
