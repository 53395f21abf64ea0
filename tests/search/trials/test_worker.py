"""A worker may be on a machine other than the driver's: it looks after its own."""

from __future__ import annotations

import os
from datetime import datetime
from pathlib import Path

import pytest
import torch
from slimfront.core.errors import EvaluationError
from slimfront.core.measurement import Measurement
from slimfront.core.threads import torch_threads, usable_threads
from slimfront.hardware_profiles.bench.bench import bench_cores, cores_for_workers
from slimfront.hardware_profiles.cards.device_card import DeviceCard
from slimfront.hardware_profiles.cards.target import Target, load_target
from slimfront.search.trials.worker import Stage, Worker, finite
from slimfront.search.trials.worker_setup import WorkerSetup
from slimfront.spaces.policies.policy import Policy

TINY = Path(__file__).parents[1] / "tiny_workload.py"
ELSEWHERE = DeviceCard(
    measured_at=datetime(2026, 1, 1), machine={"cpu": "another one"}, versions={}, memory_gb_per_s=1.0, dispatch_us=1.0,
    kernels=[], throughput=[], reference_ms={},
)  # fmt: skip


def worker(target: Target, threads: int = 1) -> Worker:
    return Worker(
        WorkerSetup(f"{TINY}:workload", {}, TINY.parent, target, groups=(), seed=0, batch_size=8, threads=threads)
    )


def test_a_machine_that_the_card_does_not_fit_times_nothing(tmp_path: Path) -> None:
    target = load_target("cpu-openvino").model_copy(update={"measured": ELSEWHERE})
    (stage,) = worker(target).run(Policy(), tmp_path / "trial")
    assert stage.name == "failed"
    assert stage.reason is not None
    assert stage.reason.startswith("target cpu-openvino was measured with cpu another one, here ")


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one core is the bench's and the workers'")
def test_workers_keep_off_the_cores_of_a_bench_on_their_own_machine() -> None:
    target, cores = load_target("cpu-openvino"), sorted(os.sched_getaffinity(0))
    assert sorted([*cores_for_workers(target), *bench_cores(target.threads)]) == cores
    assert cores_for_workers(target.model_copy(update={"remote": True})) == cores


def test_a_machine_with_fewer_cores_than_the_drivers_gets_fewer_threads() -> None:
    with torch_threads(1):
        made = worker(load_target("cpu-openvino"), threads=64)
        assert made._context.threads == torch.get_num_threads() == usable_threads()


@pytest.mark.parametrize("numbers", [(float("nan"), 0, 1), (1, float("-inf"), 1), (1, 0, float("inf"))])
def test_a_figure_that_is_not_finite_fails_its_trial_by_name(numbers: tuple[float, float, float]) -> None:
    good = Stage("counted", measurements=[Measurement.exact("flops", 1, "counted")])
    bad = Stage("scored", measurements=[Measurement("kl", *numbers, "nats")])
    assert finite(good) is good
    with pytest.raises(EvaluationError, match="kl is not finite"):
        finite(bad)
