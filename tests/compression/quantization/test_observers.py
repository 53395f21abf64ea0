"""How ranges are read from what was seen, and the schemes that choose among them."""

import numpy as np
import pytest
import torch
from slimfront.compression.quantization.observers import (
    ACTIVATION_OBSERVERS,
    EntropyObserver,
    PercentileObserver,
    divergence,
)
from slimfront.compression.quantization.quantize import quantize
from slimfront.core.errors import CompressionError, PolicyError
from slimfront.spaces.policies.policy import LayerPolicy, Policy
from slimfront.spaces.policies.quantization_scheme import CHOICES, Scheme
from torch import nn
from torch.utils.data import TensorDataset


def grids(scheme: Scheme, outlier: float = 0.0, shift: float = 0.0):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4)).eval()
    with torch.no_grad():
        model[0].weight.copy_(torch.diag(torch.tensor([1.27, 0.127, 0.5, 0.5])))
    inputs = torch.rand(5000, 4) + shift
    inputs[0, 0] = max(outlier, float(inputs[0, 0]))
    data = TensorDataset(inputs, torch.zeros(5000, dtype=torch.int64))
    return quantize(model, inputs[:1], Policy(layers={"0": LayerPolicy(8, 8)}, scheme=scheme), data)


def highest(grid) -> float:
    return (grid.high - int(grid.zero_point)) * float(grid.scale)


def test_min_max_spans_everything_and_percentile_leaves_the_tail_out():
    assert highest(grids(Scheme("min_max"), 50.0).inputs["0"]) == pytest.approx(50, rel=0.01)
    assert highest(grids(Scheme("percentile"), 50.0).inputs["0"]) < 1.5


@pytest.mark.parametrize("calibration", CHOICES["calibration"])
def test_without_outliers_every_calibration_finds_the_range(calibration):
    assert highest(grids(Scheme(calibration)).inputs["0"]) == pytest.approx(1, abs=0.03)


def test_symmetric_activations_have_zero_in_the_middle():
    grid = grids(Scheme(activations="symmetric")).inputs["0"]
    assert int(grid.zero_point) == 127  # of 0 .. 255
    assert highest(grid) == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize(
    ("shift", "zero"),
    [(0.0, 0), (-0.5, 128), (-0.4, 128), (-0.1, 25)],
    ids=["never negative", "around zero", "two fifths below zero", "a tenth below zero"],
)
def test_signed_activations_have_a_zero_point_only_where_symmetric_grids_waste_much(shift, zero):
    grid = grids(Scheme("min_max", activations="signed"), shift=shift).inputs["0"]
    assert int(grid.zero_point) == zero
    assert highest(grid) == pytest.approx(max(1 + shift, -shift), abs=0.01)


def test_per_tensor_weights_share_the_step_of_the_largest():
    np.testing.assert_allclose(grids(Scheme(weights="tensor")).weights["0"].grid.scale, 0.01, rtol=1e-5)
    np.testing.assert_allclose(grids(Scheme()).weights["0"].grid.scale[:2], [0.01, 0.001], rtol=1e-5)


def test_divergence_by_hand():
    # Four bins on two levels: the first holds 3 and 1, spread evenly as 2 and 2, the second 4 and 0, where nothing is spread.
    seen, centres = torch.tensor([3.0, 1.0, 4.0, 0.0]), torch.tensor([0.0, 0.4, 0.6, 1.0])
    expected = 3 / 8 * np.log(3 / 2) + 1 / 8 * np.log(1 / 2)
    assert divergence(seen, centres, torch.tensor(0.0), torch.tensor(1.0), 1).item() == pytest.approx(
        expected, rel=1e-5
    )
    assert divergence(torch.ones(4), centres, torch.tensor(0.0), torch.tensor(1.0), 1).item() == pytest.approx(
        0, abs=1e-6
    )


@pytest.mark.parametrize("observer", [PercentileObserver, EntropyObserver])
def test_a_range_never_grows_beyond_what_was_seen(observer):
    seen = observer(dtype=torch.uint8, quant_min=0, quant_max=15)
    values = torch.randn(20_000, generator=torch.Generator().manual_seed(0))
    seen(values)
    low, high = seen._non_linear_param_search()
    assert values.min() - 1e-3 <= low < 0 < high <= values.max() + 1e-3


@pytest.mark.parametrize(("low", "high"), [(0.5, 0.9), (-0.9, -0.5), (0.7, 0.7)])
def test_entropy_keeps_values_far_from_zero_on_a_grid_with_zero(low, high):
    seen = EntropyObserver(dtype=torch.uint8, quant_min=0, quant_max=15)
    values = torch.linspace(low, high, 1000)
    seen(values)
    scale, zero_point = seen.calculate_qparams()
    on_grid = torch.fake_quantize_per_tensor_affine(values, float(scale), int(zero_point), 0, 15)
    assert (on_grid - values).abs().max() <= 0.9 / 15  # evenly spread: nothing is worth clipping by more than a step


def test_a_scheme_is_kept_in_the_policy_only_where_it_decides_something():
    scheme = Scheme("entropy", "tensor", "symmetric")
    policy = Policy(layers={"fc": LayerPolicy(8, 8)}, scheme=scheme)
    assert Policy.from_json(policy.to_json()) == policy
    assert policy != Policy(layers={"fc": LayerPolicy(8, 8)})
    assert Policy(layers={"fc": LayerPolicy(16, 32)}, scheme=scheme) == Policy(layers={"fc": LayerPolicy(16, 32)})
    assert "scheme" not in Policy(layers={"fc": LayerPolicy(8, 8)}).to_json()
    with pytest.raises(
        PolicyError, match=r"^scheme: calibration must be one of mse, min_max, percentile, entropy, not 'best'$"
    ):
        Policy.from_json('{"schema":1,"scheme":{"calibration":"best"}}')


def test_the_range_of_least_error_is_near_the_best_of_many():
    """Against every range that a search by hand finds, on a normal tensor with outliers at 4 bits."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(20_000, generator=generator).abs()
    values[:4] = 12.0
    errors = {}
    for name in ("mse", "min_max"):
        observer = ACTIVATION_OBSERVERS[name](dtype=torch.uint8, quant_min=0, quant_max=15)
        observer(values)
        errors[name] = error(values, float(observer.calculate_qparams()[0]))
    best = min(error(values, top / 15) for top in np.linspace(1, 12, 200))
    assert errors["mse"] <= 1.1 * best
    assert errors["min_max"] > 2 * best


def error(values: torch.Tensor, step: float) -> float:
    """Mean square of rounding to 0 .. 15 steps."""
    return float(((values / step).round().clamp(0, 15) * step - values).square().mean())


@pytest.mark.parametrize("calibration", CHOICES["calibration"])
@pytest.mark.parametrize("outlier", [np.inf, np.nan])
def test_no_range_is_read_of_what_is_not_finite(calibration, outlier):
    with pytest.raises(CompressionError, match="a layer's input or weight holds NaN or infinite numbers"):
        grids(Scheme(calibration=calibration), outlier)
