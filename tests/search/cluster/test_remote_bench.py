"""A target that is a node of a Ray cluster: two nodes on this machine, only the second of which is the target."""

from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

import psutil
import pytest
import torch
import yaml
from rich.console import Console
from slimfront.core.errors import StudyFileError, TargetError
from slimfront.hardware_profiles.bench.energy import POWERCAP, package_zones
from slimfront.hardware_profiles.cards.device_card import DeviceCard
from slimfront.hardware_profiles.profiling.fingerprint import machine
from slimfront.hardware_profiles.runtimes.base import Artifact
from slimfront.search.cluster.cluster import ray
from slimfront.search.cluster.timers import timer_of
from slimfront.search.run import run_search
from slimfront.search.trials.prepared_study import prepare
from slimfront.studies.bundles.export import export_bundle
from slimfront.studies.bundles.verify import verify_bundle
from slimfront.studies.store.store import Store
from slimfront.studies.study_file.spec import StudySpec

CARD = {
    "name": "far", "runtime": "openvino", "weight_bits": [4, 8, 32], "activation_bits": [8, 32], "remote": True,
}  # fmt: skip


@pytest.fixture(scope="module")
def two_nodes() -> Iterator[str]:
    """A cluster of two nodes; yields the socket of the raylet of the second, which advertises the target."""
    from ray.cluster_utils import Cluster

    ray.shutdown()
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    node = cluster.add_node(num_cpus=0, resources={"target:far": 1})
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("RAY_ADDRESS", cluster.address)
        yield node.raylet_socket_name
    ray.shutdown()
    cluster.shutdown()


@pytest.fixture
def far_spec(tiny_spec: Callable[..., StudySpec], tmp_path: Path) -> Callable[..., StudySpec]:
    """The tiny study on the remote target."""
    (tmp_path / "far.yaml").write_text(yaml.safe_dump(CARD))
    return lambda **changes: tiny_spec(target="far.yaml", **changes)


def test_without_a_cluster_one_line_says_how_to_make_one(
    far_spec: Callable[..., StudySpec], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(TargetError, match="target far is remote, and no node"):
        prepare(far_spec()).measured_with()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_remote_gpu_is_searched_from_a_machine_with_one(far_spec: Callable[..., StudySpec], tmp_path: Path) -> None:
    gpu = {**CARD, "runtime": "torch-cuda"}
    (tmp_path / "far.yaml").write_text(yaml.safe_dump(gpu))
    with pytest.raises(
        StudyFileError, match=r"needs an NVIDIA GPU .*; elsewhere is only timed: candidates are lowered"
    ):
        prepare(far_spec())


@pytest.mark.slow
def test_the_node_that_is_the_target_times_for_workers_elsewhere(
    two_nodes: str, far_spec: Callable[..., StudySpec], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"sqlite:///{tmp_path}/far.db"
    spec = far_spec(workers=1, budget={"trials": 2}, objectives=["accuracy_drop", "latency_ms", "packed_bytes"])
    run_search(spec, url, tmp_path / "artifacts", Console(quiet=True))
    with Store(url) as store:
        trials = store.trials("tiny")
        assert [trial.state for trial in trials].count("complete") == 2
        assert all(trial.measurements["speedup"].n > 1 for trial in trials)
        assert store.get_study("tiny").machine["cpu"] == machine()["cpu"]
        export_bundle(store, "tiny", tmp_path / "bundle", trial=None, rule="knee")
    prepared = prepare(far_spec())
    with prepared.bench(Artifact.of(tmp_path / "artifacts" / "tiny" / "reference" / "model.onnx")) as bench:
        assert bench.time_reference(0.2)[0] > 0
        actors = [process for process in psutil.process_iter() if "_BenchActor" in " ".join(cmdline(process))]
        assert actors
        for actor in actors:
            assert any(two_nodes in argument for parent in actor.parents() for argument in cmdline(parent))
    speedup = list(verify_bundle(tmp_path / "bundle", timer_of))[-1]
    assert (speedup.claim, float(speedup.found) > 0) == ("speedup", True)
    ray.shutdown()
    monkeypatch.delenv("RAY_ADDRESS")
    unreachable = list(verify_bundle(tmp_path / "bundle", timer_of))[-1]
    assert (unreachable.holds, unreachable.found[:47]) == (None, "not measured: target far is remote, and no node")


def cmdline(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:  # it ended meanwhile, or is not ours to see
        return []


@pytest.mark.slow
def test_what_the_node_is_asked_for_must_be_there_and_fit(
    two_nodes: str, far_spec: Callable[..., StudySpec], tmp_path: Path
) -> None:
    assert prepare(far_spec()).measured_with()[0]["cores"] == machine()["cores"]
    if not package_zones(POWERCAP):  # the driver's counters are not asked for, the node's are
        study = prepare(far_spec(objectives=["accuracy_drop", "energy_j"]))
        with pytest.raises(TargetError, match="energy_j cannot be measured where target far is: energy needs RAPL"):
            study.measured_with()
    elsewhere = DeviceCard(
        measured_at=datetime(2026, 1, 1), machine={"cpu": "another one"}, versions={}, memory_gb_per_s=1.0,
        dispatch_us=1.0, kernels=[], throughput=[], reference_ms={},
    )  # fmt: skip
    (tmp_path / "far.yaml").write_text(yaml.safe_dump({**CARD, "measured": elsewhere.model_dump(mode="json")}))
    with pytest.raises(TargetError, match="target far was measured with cpu another one, here"):
        prepare(far_spec()).measured_with()
    (tmp_path / "far.yaml").write_text(yaml.safe_dump({**CARD, "name": "nowhere"}))
    with pytest.raises(
        TargetError, match=r"no node .* advertises it; start Ray there with --resources .*target:nowhere"
    ):
        prepare(far_spec()).measured_with()
