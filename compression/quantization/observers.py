"""Observers: how a tensor's quantization range is estimated from its values.

| calibration | range | source |
|---|---|---|
| min_max | smallest to largest value | Jacob et al. 2018, arXiv:1712.05877 |
| mse | shrunk while the squared error of rounding and clipping falls: torchao's histogram observer, with as many bins as the grid has levels instead of its default of 256 | Shin et al. 2016, arXiv:1512.01322 |
| percentile | without the outermost 0.01 % at either end | Li et al. 2019, arXiv:1906.04721 names the practice; McKinstry et al. 2018, arXiv:1809.04191 |
| entropy | minimises the Kullback-Leibler divergence of the rounded histogram from the observed one | Migacz 2017, "8-bit inference with TensorRT" |
"""

# torchao's observers name the argument of `forward` in different ways, and the base class returns nothing.
# pyright: reportIncompatibleMethodOverride=false

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from torchao.quantization.pt2e import HistogramObserver, MinMaxObserver, PerChannelMinMaxObserver
from torchao.quantization.pt2e.observer import ObserverBase

from ...core.batch import HOST
from ...core.errors import CompressionError

TAIL = 1e-4
"""The share of the values that "percentile" leaves out at either end."""

CANDIDATES = 64
"""The number of ranges that "entropy" compares, from half of the observed range to all of it."""


WASTED = 0.25
"""The largest share of a symmetric grid's integers that "signed" activations leave to values that were not seen."""


class _Finite(ObserverBase):
    """Refuses tensors that have no range.

    Args:
        signed: whether the grid is a symmetric one where that wastes few integers; see `Scheme.activations`.
    """

    def __init__(self, *args: Any, signed: bool = False, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.signed = signed

    def forward(self, seen: Tensor) -> Tensor:
        """See `ObserverBase`.

        Raises:
            CompressionError: the tensor contains NaN or an infinity, which no histogram and no range can represent.
        """
        if not bool(seen.detach().isfinite().all()):
            raise CompressionError("calibration: a layer's input or weight holds NaN or infinite numbers")
        return cast(
            "Tensor", super().forward(seen)
        )  # abstract in ObserverBase; every observer returns what it was given

    def _calculate_qparams(self, min_val: Tensor, max_val: Tensor) -> tuple[Tensor, Tensor]:
        if not self.signed:
            return super()._calculate_qparams(min_val, max_val)
        low, high = min(float(min_val), 0.0), max(float(max_val), 0.0)
        largest = max(-low, high)
        if low == 0 or high - low < 2 * largest * (1 - WASTED):
            return super()._calculate_qparams(min_val, max_val)
        middle = (self.quant_max + 1) // 2
        scale = max(largest / (self.quant_max - middle), float(self.eps))
        return torch.tensor([scale], device=min_val.device), torch.tensor([middle], device=min_val.device)


class MseObserver(_Finite, HistogramObserver):
    """See the table above."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.dst_nbins = int(self.quant_max - self.quant_min) + 1


class PercentileObserver(_Finite, HistogramObserver):
    """See the table above."""

    def _non_linear_param_search(self) -> tuple[Tensor, Tensor]:
        share = self.histogram.cumsum(0) / self.histogram.sum()
        width = (self.max_val - self.min_val) / self.bins
        first = int((share < TAIL).sum())
        last = int((share <= 1 - TAIL).sum())
        return self.min_val + width * first, self.min_val + width * min(last + 1, self.bins)


class EntropyObserver(_Finite, HistogramObserver):
    """See the table above."""

    def _non_linear_param_search(self) -> tuple[Tensor, Tensor]:
        # On the processor: a device would wait for each of thousands of small operations.
        least, most, histogram = (part.to(HOST) for part in (self.min_val, self.max_val, self.histogram))
        centres = least + (torch.arange(self.bins) + 0.5) * (most - least) / self.bins
        levels = int(self.quant_max - self.quant_min)
        shares = torch.linspace(0.5, 1.0, CANDIDATES)
        low, high = least.clamp_max(0), most.clamp_min(0)  # zero is on every grid
        gaps = torch.stack([divergence(histogram, centres, share * low, share * high, levels) for share in shares])
        # Of equally good ranges the widest clips least.
        best = shares[len(gaps) - 1 - int(gaps.flip(0).argmin())]
        return (best * low).to(self.min_val.device), (best * high).to(self.min_val.device)


def divergence(histogram: Tensor, centres: Tensor, low: Tensor, high: Tensor, levels: int) -> Tensor:
    """KL(observed || rounded) of a histogram whose bins, at `centres`, are clipped to [low, high] and rounded to `levels` steps.

    The mass of a level is spread evenly over its bins that were not empty. Infinite where no bin is inside the range.
    """
    step = ((high - low) / levels).clamp_min(torch.finfo(torch.float32).tiny)
    level = ((centres.clamp(low, high) - low) / step).round().long()
    inside = (centres >= low) & (centres <= high)
    clipped = torch.where(inside, histogram, 0.0)
    # Outliers count where they are clipped to, which is what makes too narrow a range diverge.
    ends = inside.nonzero().flatten()
    if not len(ends):
        return torch.tensor(torch.inf)
    clipped[ends[0]] += histogram[: ends[0]].sum()
    clipped[ends[-1]] += histogram[ends[-1] + 1 :].sum()
    mass = torch.zeros(levels + 1).index_add(0, level, torch.where(inside, histogram, 0.0))
    occupied = torch.zeros(levels + 1).index_add(0, level, (inside & (histogram > 0)).float())
    rounded = torch.where(inside & (histogram > 0), (mass / occupied.clamp_min(1))[level], 0.0)
    seen, kept = clipped / clipped.sum(), rounded / rounded.sum()
    return torch.where(seen > 0, seen * (seen / kept.clamp_min(1e-9)).log(), 0.0).sum()


class RangeObserver(_Finite, MinMaxObserver):
    """See the table above."""


class ChannelWeightObserver(_Finite, PerChannelMinMaxObserver):
    """A scale for each output channel."""


class PerTensorWeightObserver(ChannelWeightObserver):
    """The same scale for all output channels, that of the largest weight."""

    def forward(self, weight: Tensor) -> Tensor:
        seen = super().forward(weight)
        self.min_val.fill_(self.min_val.min())
        self.max_val.fill_(self.max_val.max())
        return seen


ACTIVATION_OBSERVERS = {
    "mse": MseObserver,
    "min_max": RangeObserver,
    "percentile": PercentileObserver,
    "entropy": EntropyObserver,
}
WEIGHT_OBSERVERS = {"channel": ChannelWeightObserver, "tensor": PerTensorWeightObserver}
