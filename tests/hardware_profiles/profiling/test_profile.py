"""Profiling a machine: small operations on a real runtime, and cards that fit this machine or do not."""

from __future__ import annotations

import dataclasses
import os
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from slimfront.core.errors import TargetError
from slimfront.hardware_profiles.bench.bench import Bench, bench_cores
from slimfront.hardware_profiles.cards.device_card import DeviceCard, Kernel
from slimfront.hardware_profiles.cards.target import card_text, load_target
from slimfront.hardware_profiles.profiling import copying
from slimfront.hardware_profiles.profiling import profile as module
from slimfront.hardware_profiles.profiling.copying import bandwidth_by_bytes
from slimfront.hardware_profiles.profiling.fingerprint import machine, require_fit, versions
from slimfront.hardware_profiles.profiling.profile import OPERATIONS, profile_target
from slimfront.hardware_profiles.profiling.synthetic import synthetic_candidate
from slimfront.hardware_profiles.runtimes.base import get_runtime
from torch import nn


def card(**changes: object) -> DeviceCard:
    """Of this machine by default."""
    here = {"machine": machine(), "versions": versions(get_runtime("onnxruntime"))}
    numbers = {"memory_gb_per_s": 1, "dispatch_us": 2, "kernels": [], "throughput": [], "reference_ms": {}}
    return DeviceCard(measured_at="2026-01-02T03:04:05Z", **{**here, **numbers, **changes})


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory):
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("SLIMFRONT_BENCH_LOCK", str(tmp_path_factory.mktemp("profile") / "bench.lock"))
        patched.setattr(module, "SECONDS", 0.05)
        patched.setattr(module, "REFERENCES", ())
        patched.setattr(module, "BUDGET_SECONDS", 600)  # however busy this machine is
        patched.setattr(copying, "COPY_BYTES", 2**20)
        patched.setattr(module, "OPERATIONS", (dataclasses.replace(OPERATIONS[0], channels=32),))
        steps = []
        target = load_target("cpu-onnxruntime").model_copy(
            update={"weight_bits": [4, 8, 16, 32], "activation_bits": [8, 16, 32]}
        )
        found = profile_target(target, lambda *step: steps.append(step))
        return target, found, steps


@pytest.mark.slow
def test_a_profile_says_which_bits_have_a_kernel(measured):
    _, found, _ = measured
    executed = {(kernel.weight_bits, kernel.activation_bits): kernel.executed for kernel in found.kernels}
    assert executed == {
        (32, 32): "f32", (16, 32): "f32", (16, 16): "f32", (8, 32): "f32", (4, 32): "f32",
        (32, 8): "f32", (16, 8): "f32", (8, 8): "i8", (4, 8): "i8",
    }  # fmt: skip
    storage = {(k.weight_bits, k.activation_bits) for k in found.kernels if k.storage_only}
    assert storage == {(16, 32), (16, 16), (8, 32), (4, 32), (32, 8), (16, 8)}


@pytest.mark.slow
def test_a_profile_is_full_of_numbers_and_tells_its_progress(measured):
    _, found, steps = measured
    assert [(reached.weight_bits, reached.activation_bits) for reached in found.throughput] == [
        (32, 32),
        (16, 32),
        (16, 16),
        (8, 8),
    ]
    assert all(0 < reached.low <= reached.gmac_per_s <= reached.high for reached in found.throughput)
    assert found.memory_gb_per_s > 0.1
    assert 0.1 < found.dispatch_us < 1e5
    assert 0 <= found.operation_us < found.dispatch_us
    assert found.gb_per_s_by_bytes[max(found.gb_per_s_by_bytes)] == found.memory_gb_per_s
    assert found.machine == machine()
    assert found.left_out == []
    assert [name for name, _, _ in steps] == ["memory", "dispatch", "conv2d speed", "kernels"]
    assert [(done, total) for _, done, total in steps] == [(0, 4), (1, 4), (2, 4), (3, 4)]


def test_what_there_is_no_time_for_is_said(tmp_path, monkeypatch):
    monkeypatch.setenv("SLIMFRONT_BENCH_LOCK", str(tmp_path / "bench.lock"))
    monkeypatch.setattr(module, "SECONDS", 0.05)
    monkeypatch.setattr(copying, "COPY_BYTES", 2**20)
    monkeypatch.setattr(module, "BUDGET_SECONDS", 0)
    target = load_target("cpu-onnxruntime").model_copy(update={"weight_bits": [8, 32], "activation_bits": [8, 32]})
    found = profile_target(target)
    assert found.dispatch_us > 0
    assert (found.throughput, found.kernels, found.reference_ms) == ([], [], {})
    speeds = [f"{operation.name} speed" for operation in OPERATIONS]
    kernels = [f"{pair} kernels" for pair in ("32/32", "8/8", "8/32", "32/8")]
    assert found.operation_us is None
    assert found.left_out == ["operation", *speeds, "mobilenet_v2", "resnet18", *kernels]


def test_a_step_begins_only_where_the_longest_so_far_would_still_fit(tmp_path):
    target = load_target("cpu-onnxruntime")
    profiler = module._Profiler(target, get_runtime("onnxruntime"), tmp_path, time.monotonic() + 60)
    assert profiler.begun(lambda: 7) == 7
    assert profiler.has_time("one thing")
    profiler.longest = 61
    assert not profiler.has_time("another")
    assert profiler.left_out == ["another"]


@pytest.mark.slow
def test_a_measured_card_is_a_target_file(measured, tmp_path):
    target, found, _ = measured
    whole = target.model_copy(update={"measured": found})
    (tmp_path / "card.yaml").write_text(card_text(whole))
    assert load_target("card.yaml", tmp_path) == whole


def test_a_card_measured_here_fits_and_a_template_fits_everywhere():
    target = load_target("cpu-onnxruntime")
    require_fit(target, get_runtime("onnxruntime"))
    require_fit(target.model_copy(update={"measured": card()}), get_runtime("onnxruntime"))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"machine": {**machine(), "cpu": "Another CPU"}}, "cpu Another CPU, here "),
        ({"machine": {**machine(), "flags": []}}, "flags none, here "),
        ({"machine": {**machine(), "cores": 999}}, f"cores 999, here {len(os.sched_getaffinity(0))}"),
        ({"versions": {"onnxruntime": "0.1"}}, "onnxruntime 0.1, here "),
        ({"versions": {}}, "onnxruntime None, here "),
    ],
    ids=["cpu", "flags", "cores", "version", "another runtime"],
)
def test_a_card_measured_elsewhere_is_refused_with_what_differs(changes, says):
    target = load_target("cpu-onnxruntime").model_copy(update={"measured": card(**changes)})
    with pytest.raises(TargetError, match=r"^target cpu-onnxruntime was measured with ") as caught:
        require_fit(target, get_runtime("onnxruntime"))
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_target_with_more_threads_than_this_process_has_cores_is_refused():
    target = load_target("cpu-onnxruntime").model_copy(update={"threads": 999})
    here = len(os.sched_getaffinity(0))
    says = f"^target cpu-onnxruntime: threads: 999, but this process may use {here} of the machine's cores$"
    with pytest.raises(TargetError, match=says):
        require_fit(target, get_runtime("onnxruntime"))
    with pytest.raises(TargetError, match=says):
        Bench(target, Path("reference.onnx"), np.zeros((1, 1), np.float32), bench_cores(999))
    require_fit(target.model_copy(update={"predict": True}), get_runtime("onnxruntime"))
    require_fit(load_target("gpu-torch").model_copy(update={"threads": 999}), get_runtime("onnxruntime"))


def test_a_kernel_that_no_runtime_tells_of_is_not_called_storage_only():
    assert not Kernel(operation="conv2d", weight_bits=8, activation_bits=8, executed=None).storage_only
    assert not Kernel(operation="conv2d", weight_bits=32, activation_bits=32, executed="f32").storage_only


def test_copying_leaves_the_caller_where_it_was(monkeypatch):
    monkeypatch.setattr(copying, "COPY_BYTES", 2**20)
    ours = os.sched_getaffinity(0)
    found = bandwidth_by_bytes([max(ours)])
    assert list(found) == [2**19, 2**21]  # read and written
    assert min(found.values()) > 0
    assert os.sched_getaffinity(0) == ours


@pytest.mark.parametrize("bits", [2, 8])
def test_synthetic_grids_hold_the_weights(bits):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(4, 6, 3), nn.Flatten(), nn.Linear(6, 5, bias=False)).eval()
    made = synthetic_candidate(model, torch.zeros(1, 4, 3, 3), bits, 8).quantization
    assert set(made.weights) == set(made.inputs) == {"0", "2"}
    for name, weight in made.weights.items():
        real = model.get_submodule(name).weight.detach().numpy()
        scale = weight.grid.scale.reshape(-1, *[1] * (real.ndim - 1))
        assert weight.integers.min() >= weight.grid.low
        assert weight.integers.max() <= weight.grid.high
        assert np.abs(weight.integers * scale - real).max() <= scale.max() / 2 + 1e-6
