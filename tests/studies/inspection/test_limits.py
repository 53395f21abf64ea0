"""What `inspect` and a search that found nothing say of a model's limits, on a card with round numbers."""

import pytest
import torch
from rich.console import Console
from slimfront.hardware_profiles.cards.device_card import DeviceCard, Throughput
from slimfront.hardware_profiles.cards.target import Target, load_target
from slimfront.spaces.models.channel_groups import find_channel_groups
from slimfront.spaces.models.layers import find_layers
from slimfront.studies.inspection.inspect import inspect_workload
from slimfront.studies.inspection.limits import limits_on, limits_text
from slimfront.studies.inspection.report import inspection_tables
from torch import nn


@pytest.fixture
def target() -> Target:
    """One multiply-add a nanosecond in float32 and four in 8 bits, memory that costs nothing, 1 us to dispatch an operation."""
    throughput = [
        Throughput(
            operation=name, weight_bits=bits, activation_bits=bits, gmac_per_s=rate, low=rate, high=rate, noisy=False
        )
        for name in ("conv2d", "depthwise", "linear")
        for bits, rate in ((32, 1.0), (8, 4.0))
    ]
    card = DeviceCard(
        measured_at="2026-01-02T03:04:05Z", machine={}, versions={}, memory_gb_per_s=None, dispatch_us=1.0, operation_us=1.0,
        kernels=[], throughput=throughput, reference_ms={},
    )  # fmt: skip
    return load_target("cpu-onnxruntime").model_copy(update={"measured": card})


@pytest.fixture
def network() -> nn.Sequential:
    """64,000 multiply-adds in the first layer and 16,000 in the second; half of each at half the width."""
    return nn.Sequential(nn.Linear(400, 160), nn.ReLU(), nn.Linear(160, 100)).eval()


def test_half_the_channels_and_8_bits_are_counted_on_the_model(network: nn.Sequential, target: Target) -> None:
    example = torch.zeros(1, 400)
    found = limits_on(network, example, find_layers(network, example), find_channel_groups(network, example)[0], target)
    assert found is not None
    assert found.now.latency_ms == pytest.approx((64 + 16 + 2) / 1e3)
    assert found.gain("from 8 bits") == pytest.approx(82 / (16 + 4 + 2))
    assert found.gain("at half the channels") == pytest.approx(82 / (32 + 8 + 2))
    assert found.gain("from both") == pytest.approx(82 / (8 + 2 + 2))
    assert limits_text(found, target, 0.1).endswith("; that is 82% of what was measured")
    beaten = limits_text(found, target, 0.041)  # which no bound would let it be
    assert "measured to take 50% of that" in beaten
    assert "of what was measured" not in beaten


def test_where_nothing_was_measured_a_line_says_how_to(network: nn.Sequential) -> None:
    template = load_target("cpu-onnxruntime")
    assert limits_on(network, torch.zeros(1, 400), [], [], template) is None
    assert limits_text(None, template) == "what bounds it is unknown: `slimfront profile cpu-onnxruntime` measures it"


def test_an_inspection_shows_every_layer_s_least_time(digits_workload, target: Target) -> None:
    found = inspect_workload(digits_workload, target)
    console = Console(width=200)
    with console.capture() as captured:
        console.print(inspection_tables(found))
    shown = captured.get()
    assert "Least time on cpu-onnxruntime" in shown
    assert "at best about" in shown
    assert [bound.name for bound in found.limits.now.bounds[:-1]] == [layer.name for layer in found.layers]
    assert found.to_dict()["limits"]["now"]["precision"] == "float32"
