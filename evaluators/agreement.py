"""Whether an artifact computes what the torch model does that it was made from, up to rounding.

The artifact's outputs are compared with those of the torch model on the same grids. How far they may differ follows from the model
itself: from how far its grids move its outputs, since a runtime may round at other places, and from how far changes of its numbers by
as much as their type of float rounds do. Anything beyond is another function: a permuted weight, a lost bias, a wrong scale.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ..compression.folding import BATCH_NORMS
from ..compression.simulation import Simulation
from ..core.batch import Batch, joined, mapped, moved, rows, taken, tensors_of
from ..core.errors import EvaluationError
from ..hardware_profiles.profiling.fingerprint import machine, saturates
from ..hardware_profiles.runtimes.base import computed_types
from ..hardware_profiles.runtimes.registry import RUNTIMES
from ..spaces.policies.candidate import Candidate
from ..spaces.policies.float_precision import BFLOAT16, FLOAT16, FLOAT32, TFLOAT32, FloatType
from ..spaces.policies.layer_policy import GRID_BITS
from .evaluator import Context

ASKED = 4
"""The number of samples that are compared."""

MARGIN = 6.0
"""How many times as far as rounding moves the outputs of the torch model an artifact's may be from them. Measured: at most 2.7 times,
where OpenVINO chooses ranges of dynamic quantization by groups of its own, and 4.1 in one of 282 generated networks, where a model's own
rounding happens to move its outputs little."""

ROUNDING: dict[FloatType, float] = {FLOAT32: 2.0**-17, TFLOAT32: 2.0**-10, FLOAT16: 2.0**-10, BFLOAT16: 2.0**-8}
"""By which share of itself a number may differ from one kernel to another: twice the distance of two neighbours of the type, and in
float32, where long sums and fast convolutions count for more, a hundred times."""

NOTHING = 1e-3
"""The share of the outputs' size by which they always may differ: kernels approximate functions such as erf by polynomials. Measured: 2e-4."""

ISA_LIMIT = "ONEDNN_MAX_CPU_ISA"
"""The variable of the environment that limits the instructions that OpenVINO's kernels use."""

SATURATED = 0.5
"""The share of the outputs' size by which they may differ where sums of 8-bit products saturate, as on processors without VNNI. Measured:
up to 0.23; accuracies are those of such processors, which a search says."""


@dataclass
class Agreement:
    """Compares an artifact's outputs with the torch model's, batch by batch, on the first few samples.

    Args:
        candidate: that the artifact was made of.
        float_type: what its floats are computed in.
        saturates: whether sums of 8-bit products saturate where it runs.
    """

    candidate: Candidate
    float_type: FloatType
    saturates: bool = False

    def __post_init__(self) -> None:
        self._runs: list[tuple[Batch, Batch]] = []
        norms = (module for module in self.candidate.model.modules() if isinstance(module, BATCH_NORMS))
        self._is_of_batch = any(norm.running_mean is None for norm in norms)

    @classmethod
    def of(cls, candidate: Candidate, context: Context) -> Agreement:
        """For what is lowered and run in this context."""
        policy, types = candidate.policy, computed_types(context.runtime, context.target)
        halves = any(layer.is_bfloat16 for layer in policy.layers.values())
        wide = any(layer.weight_bits == layer.activation_bits == GRID_BITS for layer in policy.layers.values())
        overflow = wide and _saturates(context.runtime.name)
        return cls(candidate, BFLOAT16 if halves else types.get(policy.float_precision, FLOAT32), overflow)

    def watch(self, inputs: Batch, outputs: Batch) -> None:
        """Note what the artifact made of a batch [n, ...], of which rows after the outputs' are padding."""
        count = ASKED - sum(rows(made) for _, made in self._runs)
        if count > 0:
            read = inputs if self._is_of_batch else taken(inputs, slice(min(count, rows(outputs))))
            self._runs.append((read, taken(outputs, slice(count))))

    @cached_property
    def shares(self) -> tuple[float, float]:
        """How far the outputs are from the torch model's, and how far rounding may take them, as shares of their size; of several
        outputs the one that is furthest beyond, and of numbers that are not floats none."""
        simulation = Simulation(self.candidate)
        squares = sum(self._squares(simulation, *run) for run in self._batches())
        assert isinstance(squares, Tensor), "nothing was watched"
        always = SATURATED if self.saturates else NOTHING
        pairs = [(0.0, always)]
        for divergence, grids, floats, size in squares.sqrt().T.tolist():
            size = max(size, torch.finfo(torch.float32).tiny)
            pairs.append((divergence / size, MARGIN * (grids + floats) / size + always))
        return max(pairs, key=lambda pair: pair[0] - pair[1] if pair[0] > pair[1] else pair[0] / pair[1] - 1)

    def _batches(self) -> list[tuple[Batch, Batch]]:
        """What was watched, together unless a sample's output depends on the rest of its batch."""
        if self._is_of_batch:
            return self._runs
        inputs, outputs = zip(*self._runs, strict=True)
        return [(joined(inputs), joined(outputs))]

    def _squares(self, simulation: Simulation, inputs: Batch, outputs: Batch) -> Tensor:
        """Squared distances of the artifact's, the unrounded and the disturbed outputs from the torch model's, and the squares of those,
        shape [4, outputs]."""
        device = next((tensor.device for tensor in self.candidate.model.parameters()), torch.device("cpu"))
        read, found = moved(inputs, device), moved(outputs, device)
        expected = simulation.outputs(read)
        disturbed = simulation.outputs(read, ROUNDING[self.float_type])
        others = (found, simulation.unrounded_outputs(read), disturbed, mapped(torch.zeros_like, expected))
        count = rows(outputs)
        return torch.stack([_square(taken(other, slice(count)), taken(expected, slice(count))) for other in others])

    def require(self) -> None:
        """Raise where the outputs differ by more than rounding explains.

        Raises:
            EvaluationError: by how much they do.
        """
        divergence, allowed = self.shares
        if divergence > allowed:
            raise EvaluationError(
                f"the runtime computes another function: its outputs differ from the torch model's by {divergence:.2g} of their "
                f"size, and rounding explains {allowed:.2g}"
            )


def _square(found: Batch, expected: Batch) -> Tensor:
    """The squared distance of each output that is of floats."""
    pairs = zip(tensors_of(found), tensors_of(expected), strict=True)
    squares = [(one.double() - other.double()).square().sum() for one, other in pairs if other.is_floating_point()]
    return torch.stack(squares) if squares else torch.zeros(0)


def _saturates(runtime: str) -> bool:
    """Whether sums of 8-bit products may saturate here; a runtime may be limited to less than the processor has."""
    limited = RUNTIMES[runtime].saturates and ISA_LIMIT in os.environ
    return limited or saturates(machine(), runtime)
