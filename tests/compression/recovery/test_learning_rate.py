"""A learning rate found on the model, and what a study and its policies hold of it."""

import itertools
import time
from pathlib import Path

import pytest
import torch
from slimfront.compression.recovery import computing, learning_rate
from slimfront.compression.recovery.learning_rate import (
    CHANNELS_LAST,
    MIXED_PRECISION,
    WAYS,
    batch_within,
    chosen_way,
    found_training,
    highest_near_least,
    steps_within,
)
from slimfront.search.study_setup import affordable
from slimfront.spaces.models.channel_groups import find_channel_groups
from slimfront.spaces.policies.policy import Recovery
from slimfront.studies.study_file.spec import StudySpec
from slimfront.workloads.workload import Workload
from torch import nn
from torch.utils.data import TensorDataset


def task(scale: float = 1.0) -> Workload:
    """Inputs of a size that decides which rates are stable."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 3)).eval()
    inputs = scale * torch.randn(192, 8)
    data = TensorDataset(inputs, model(inputs).argmax(1))
    return Workload(model, data, data, data, data, inputs[:1])


def rate_of(workload: Workload, **recovery) -> float:
    groups, _ = find_channel_groups(workload.model, workload.example_input)
    return found_training(workload, Recovery(1, **recovery), groups, 0, 16).rate


def test_the_highest_rate_near_the_least_loss_by_hand():
    rates = [0.0, 1e-3, 1e-2, 1e-1, 1.0]
    assert highest_near_least(list(zip(rates, [10.0, 5.0, 1.0, 1.2, 1.3], strict=True)), 1e-4) == 1.0
    # Medians of three: 7.5, 5, 5, 6, 8; near the least is up to 5 + 0.05 x (10 - 5).
    assert highest_near_least(list(zip(rates, [10.0, 5.0, 1.0, 6.0, 10.0], strict=True)), 1e-4) == 1e-2
    assert highest_near_least([(0.0, 1.0)], 1e-4) == 1e-4


def test_a_rate_is_found_again_with_the_same_seed_and_follows_the_model():
    state = torch.get_rng_state()
    first, again, large = rate_of(task()), rate_of(task()), rate_of(task(30.0))
    assert first == again
    assert large < first / 3  # gradients grow with the inputs
    assert 1e-4 <= large < first <= 0.5
    assert rate_of(task(), optimizer="adamw") <= 0.05
    torch.manual_seed(0)
    assert state.shape == torch.get_rng_state().shape


def test_a_slow_model_is_tried_at_fewer_rates():
    assert steps_within(30.0, 0.01) == 48
    assert steps_within(30.0, 1.0) == 30
    assert steps_within(30.0, 60.0) == 12
    assert batch_within(20.0, 1e-4, 64) == 64
    assert batch_within(20.0, 0.02, 64) == 16  # 12 steps of 20 samples fit
    assert batch_within(20.0, 3.0, 64) == 4


def test_the_rate_of_a_slow_model_is_found_on_small_batches_and_is_near_that_of_full_ones(monkeypatch):
    full = rate_of(task())
    monkeypatch.setattr(learning_rate, "_sample_s", lambda _: 0.1)
    assert full / 5 <= rate_of(task()) <= 5 * full


def test_a_preset_offers_the_epochs_that_a_runs_time_allows():
    assert affordable((0, 1, 10), 1.0, None, 100) == [0, 1, 10]
    assert affordable((0, 1, 10), 6.0, 600.0, 100) == [0, 1, 10]  # 15 % of 600 s are 90 s
    assert affordable((0, 1, 10), 10.0, 600.0, 100) == [0, 1]
    assert affordable((0, 6), 80.0, 600.0, 100) == [0, 6]  # the fewest stay where an epoch fits


def test_a_preset_offers_a_part_of_an_epoch_that_takes_too_long():
    assert affordable((0, 1, 10), 4000.0, 3600.0, 20_000) == [0, 0.1]  # 15 % of 3600 s are 540 s
    assert affordable((0, 6), 4000.0, 600.0, 20_000) == [0, 0.02]
    assert affordable((0, 6), 1e6, 600.0, 20_000) == [0, 0.005]  # 100 steps, and 0.002 would be 40
    assert affordable((0, 6), 4000.0, 600.0, 20) == [0, 6]  # no part has steps enough


def test_a_way_is_taken_that_is_worth_it_and_bfloat16_only_on_top_of_the_better_layout():
    assert chosen_way(WAYS, [4.0, 3.0, 2.5, 2.0]) == 3
    assert chosen_way(WAYS, [4.0, 2.0, 2.5, 1.9]) == 1
    assert chosen_way(WAYS, [4.0, 3.9, 2.0, 2.5]) == 2
    assert chosen_way(WAYS, [4.0, 3.9, 3.8, 3.7]) == 0
    assert chosen_way([{}, {MIXED_PRECISION: True}], [1.0, 2.0]) == 0


def test_only_what_a_study_leaves_open_and_a_network_takes_is_timed(monkeypatch):
    tried = []
    monkeypatch.setattr(learning_rate, "chosen_way", lambda ways, seconds: tried.append([*ways]) or len(ways) - 1)
    monkeypatch.setattr(learning_rate, "has_bfloat16", lambda: True)
    rows = nn.Flatten()
    for first, keys, expected in (
        (nn.Conv2d(3, 8, 3), WAYS[1], [{}, WAYS[1]]),
        (nn.Conv2d(3, 8, 3), WAYS[3], [*WAYS]),
        (nn.Sequential(nn.Conv2d(3, 8, 3), Viewed()), WAYS[3], [{}, WAYS[2]]),
        (nn.Identity(), WAYS[3], [{}, WAYS[2]]),
    ):
        torch.manual_seed(0)
        inputs = torch.randn(64, 3, 6, 6)
        width = first(inputs).flatten(1).shape[1]
        model = nn.Sequential(first, rows, nn.Linear(width, 16), nn.ReLU(), nn.Linear(16, 3)).eval()
        data = TensorDataset(inputs, model(inputs).argmax(1))
        groups, _ = find_channel_groups(model, inputs[:1])
        given = Workload(model, data, data, data, data, inputs[:1])
        found = found_training(given, Recovery(1), groups, 0, 16, [*keys])
        assert tried.pop() == expected
        assert (found.way, found.rate) == (expected[-1], Recovery.learning_rate)
        assert found.gain > 0
        assert found.epoch_s > 0
    found = found_training(given, Recovery(1), groups, 0, 16)
    assert (tried, found.way) == ([[{}]], {})
    assert found.rate != Recovery.learning_rate


def test_waiting_for_a_busy_machine_does_not_count_against_a_way(monkeypatch):
    def steps(_student, _workload, recovery, _batch_size):
        return (lambda *_: time.sleep(0.05) if recovery.mixed_precision else sum(range(200_000))), lambda *_: 1.0

    monkeypatch.setattr(learning_rate, "training_step", steps)
    monkeypatch.setattr(learning_rate, "has_bfloat16", lambda: True)
    groups, _ = find_channel_groups(task().model, task().example_input)
    found = found_training(task(), Recovery(1), groups, 0, 16, [MIXED_PRECISION])
    assert (found.way, found.gain > 1) == ({MIXED_PRECISION: True}, True)
    assert found.epoch_s >= 12 * 0.05  # what it takes is what a user waits


def test_an_epoch_is_estimated_from_all_steps_of_the_range_test(monkeypatch):
    calls = itertools.count()

    def steps(*_):
        def step(*_):
            call = next(calls) - learning_rate.ROUNDS - 1
            time.sleep(0.1 if call < 0 else 0.3 if call == 2 else 0)

        return step, lambda *_: 1.0

    monkeypatch.setattr(learning_rate, "training_step", steps)
    groups, _ = find_channel_groups(task().model, task().example_input)
    found = found_training(task(), Recovery(1), groups, 0, 16)
    assert found.epoch_s < 0.2  # an epoch has twelve steps; those before the test, and one of it, were held up


class Viewed(nn.Module):
    """Maps as rows by a `view`, which no maps with their channels last allow."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.view(len(x), -1)


def spec_of(**recovery) -> StudySpec:
    document = {
        "study": "s", "workload": "digits", "target": "cpu-openvino", "objectives": ["accuracy_drop", "latency_ms"],
        "budget": {"trials": 1}, "recovery": recovery,
    }  # fmt: skip
    return StudySpec.from_document(document, "study.yaml", Path())


def test_presets_leave_the_rate_to_the_model_and_a_study_keeps_what_was_found():
    written = spec_of()
    full = written.with_preset("cnn", {"weight_bits": (8, 32), "activation_bits": (8, 32)})
    assert full.recovery.learning_rate == "auto"
    assert full.recovery.settings().mixed_precision is False  # until it is found to be faster
    begun = StudySpec.from_json(full.with_training(0.013, {MIXED_PRECISION: True, CHANNELS_LAST: True}).to_json())
    for later in (written, spec_of(learning_rate="auto")):
        found = later.continuing(begun).recovery.settings(2)
        assert (found.learning_rate, found.mixed_precision, found.channels_last) == (0.013, True, True)
    assert full.with_training(0.013, {}).recovery.mixed_precision is False
    assert spec_of(mixed_precision=False).continuing(begun).recovery.mixed_precision is False
    assert spec_of(learning_rate=0.5).continuing(begun).recovery.learning_rate == 0.5
    with pytest.raises(Exception, match=r"recovery.learning_rate"):
        spec_of(learning_rate="fast")


class Noting(nn.Module):
    """Notes in which mode it was whenever gradients go through it."""

    def __init__(self, modes: set[bool]) -> None:
        super().__init__()
        self.modes = modes

    def __deepcopy__(self, _: object) -> "Noting":
        return Noting(self.modes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.requires_grad:
            mode = self.training
            x.register_hook(lambda _: self.modes.add(mode))
        return x


def test_ways_are_timed_in_training_mode(monkeypatch):
    monkeypatch.setattr(learning_rate, "has_bfloat16", lambda: True)
    torch.manual_seed(0)
    modes: set[bool] = set()
    model = nn.Sequential(nn.Conv2d(3, 8, 3), Noting(modes), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(128, 3)).eval()
    inputs = torch.randn(64, 3, 6, 6)
    data = TensorDataset(inputs, model(inputs).argmax(1))
    workload = Workload(model, data, data, data, data, inputs[:1])
    modes.clear()
    found_training(workload, Recovery(1, 0.01), [], 0, 16, [CHANNELS_LAST, MIXED_PRECISION])
    assert modes == {True}


class Summed(nn.Module):
    """Sums pairs of channels into float32, which takes no bfloat16."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.zeros(len(x), 16).index_add(1, torch.arange(32) // 2, x)


def test_a_way_in_which_the_model_cannot_be_trained_is_left_out_with_the_reason(monkeypatch, caplog):
    monkeypatch.setattr(learning_rate, "has_bfloat16", lambda: True)
    monkeypatch.setattr(computing, "has_bfloat16", lambda: True)
    model = nn.Sequential(nn.Linear(8, 32), Summed(), nn.Linear(16, 3)).eval()
    inputs = torch.randn(64, 8)
    data = TensorDataset(inputs, model(inputs).argmax(1))
    workload = Workload(model, data, data, data, data, inputs[:1])
    found = found_training(workload, Recovery(1), [], 0, 16, ["learning_rate", MIXED_PRECISION])
    assert found.way == {}
    assert "recoveries do without mixed_precision: RuntimeError" in caplog.text
