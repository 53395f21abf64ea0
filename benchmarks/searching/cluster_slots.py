"""Whether a search keeps every slot of a cluster busy, and what it loses where a node dies and another joins.

Ray nodes on this machine, each in a mount namespace of its own in which the study's folder and its artifacts are empty: nothing but
Ray connects them with the driver. Trials sleep, so that two cores carry eight slots. `--part` picks one of the three runs:

    one     12 trials on one slot, for the speed-up
    slots   120 trials on three nodes of 3, 3 and 2 slots
    change  120 trials, after 30 of which one node is killed and another one joins

    python benchmarks/searching/cluster_slots.py --part slots --json slots.json
"""

from __future__ import annotations

import argparse
import json
import os
import re
import secrets
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import yaml
from slimfront.hardware_profiles.cards.latency_table import LatencyTable
from slimfront.hardware_profiles.cards.target import load_target

SLEEP_S = 2.0
TOKEN = secrets.token_hex(32)
"""One for all clusters: Ray reads it once a process."""
RAY = str(Path(sys.executable).with_name("ray"))

NET = '''
"""A small network whose weights are read by a relative path, and whose trials sleep."""
import os, time
from pathlib import Path
import torch
from torch import nn
from torch.utils.data import TensorDataset
from slimfront.workloads.workload import Workload

IN_DRIVER = os.environ.get("SLOTS_DRIVER") == str(os.getpid())


def net():
    return nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(),
                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 2))


def data(count, seed):
    generator = torch.Generator().manual_seed(seed)
    classes = torch.arange(count) % 2
    images = torch.randn(count, 1, 8, 8, generator=generator) * 0.5
    images[classes == 1, :, ::2] += 1
    return TensorDataset(images, classes)


class Slow:
    """Samples whose first one takes seconds to read, in workers: a metric may be called many times, for its interval."""

    def __init__(self, samples):
        self.samples = samples

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        if index == 0 and not IN_DRIVER:
            time.sleep(float(os.environ["SLOTS_SLEEP"]))
        return self.samples[index]


def workload():
    model = net()
    model.load_state_dict(torch.load("model.pt"))
    assert (Path(__file__).parent / "model.pt").samefile("model.pt")
    return Workload(model.eval(), data(64, 0), data(32, 1), Slow(data(32, 2)), data(32, 3), data(1, 0).tensors[0])
'''


def write_study(folder: Path, trials: int) -> Path:
    """A study folder of the kind a user has: a module, weights, a card and a study file."""
    import torch

    (folder / "net.py").write_text(NET)
    names: dict[str, Any] = {"__file__": str(folder / "net.py"), "__name__": "net"}
    exec(NET, names)
    torch.manual_seed(0)
    model, images = names["net"](), names["data"](64, 0)
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(40):
        loss = torch.nn.functional.cross_entropy(model(images.tensors[0]), images.tensors[1])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    torch.save(model.state_dict(), folder / "model.pt")
    costs = {f"{kind}.{bits}.calls": 0.3 for kind in ("conv2d", "linear") for bits in ("f32", "bf16", "i8")}
    table = LatencyTable(model=["0", "2", "6"], costs=costs, reference_ms=1.0, error=0.05, error_95=0.1, policies=9)
    card = load_target("cpu-openvino").model_copy(update={"latency_table": table, "predict": True})
    (folder / "card.yaml").write_text(yaml.safe_dump(card.model_dump(mode="json", exclude_none=True)))
    space = {"float_precision": ["float32"], "weight_bits": [4, 8, 32], "activation_bits": [8, 32], "channel_sparsity": [0, 0.5]}  # fmt: skip
    study = {
        "study": "slots", "workload": "net.py:workload", "target": "card.yaml", "reference": "float32", "workers": "auto",
        "objectives": ["accuracy_drop", "packed_bytes"], "budget": {"trials": trials}, "sensitivity": False,
        "sampler": "random", "space": space,
    }  # fmt: skip
    (folder / "study.yaml").write_text(yaml.safe_dump(study))
    return folder / "study.yaml"


class Nodes:
    """Ray nodes in processes of their own, which see empty folders where the driver has files."""

    def __init__(self, hidden: Path) -> None:
        self._hidden = hidden
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        self.address = f"127.0.0.1:{self._port}"
        self._running: list[subprocess.Popen[bytes]] = []
        self._start("--head", f"--port={self._port}", "--num-cpus=0", "--include-dashboard=false")
        self._wait(self._members)

    def add(self, slots: int) -> subprocess.Popen[bytes]:
        """Start a node; it joins within seconds."""
        return self._start(f"--address={self.address}", f"--num-cpus={slots}", is_blind=True)

    def add_each(self, sizes: list[int]) -> list[subprocess.Popen[bytes]]:
        """Nodes of these sizes, each of which joins before the next one starts.

        Nodes of one machine that start at the same moment may choose the same ports, and one of them ends then.
        """
        added = []
        for size in sizes:
            members = self._members()
            added.append(self.add(size))
            self._wait(lambda members=members: self._members() > members)
        return added

    def kill(self, node: subprocess.Popen[bytes]) -> None:
        """Kill a node with everything on it, as a machine that loses its power."""
        family = psutil.Process(node.pid).children(recursive=True)
        for process in [psutil.Process(node.pid), *family]:
            if process.is_running():
                process.kill()

    def close(self) -> None:
        """Kill all."""
        for node in reversed(self._running):
            if node.poll() is None:
                self.kill(node)

    def _members(self) -> int:
        """How many nodes are alive; 0 as long as the head does not answer."""
        status = subprocess.run([RAY, "status", "--address", self.address], capture_output=True, text=True, check=False)
        active, _, _ = status.stdout.partition("Pending:")
        return len(re.findall(r"^ \d+ node_", active, re.MULTILINE))

    @staticmethod
    def _wait(condition: Callable[[], object]) -> None:
        limit = time.monotonic() + 60
        while not condition():
            if time.monotonic() > limit:
                raise TimeoutError("a Ray node has not started within 60 s")
            time.sleep(0.5)

    def _start(self, *options: str, is_blind: bool = False) -> subprocess.Popen[bytes]:
        ray = [RAY, "start", *options, "--block", "--object-store-memory=100000000"]
        hide = f'mount -t tmpfs none {self._hidden} && exec "$@"'
        command = ["unshare", "-m", "sh", "-c", hide, "sh", *ray] if is_blind else ray
        node = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd="/")
        self._running.append(node)
        return node


@contextmanager
def cluster(hidden: Path, sizes: list[int]) -> Iterator[tuple[Nodes, list[subprocess.Popen[bytes]]]]:
    """A head without slots and nodes of these sizes, with a token of its own."""
    os.environ |= {
        "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN, "RAY_USAGE_STATS_ENABLED": "0",
        "SLOTS_DRIVER": str(os.getpid()), "SLOTS_SLEEP": str(SLEEP_S),
    }  # fmt: skip
    nodes = Nodes(hidden)
    os.environ["RAY_ADDRESS"] = nodes.address
    try:
        yield nodes, nodes.add_each(sizes)
    finally:
        nodes.close()


def run(trials: int, sizes: list[int], change_at: int | None) -> dict[str, Any]:
    """One search over the cluster; `change_at` trials after which a node is killed and another of its size joins."""
    hidden = Path(tempfile.mkdtemp(prefix="slots-study-"))
    study = write_study(hidden, trials)
    try:
        with cluster(hidden, sizes) as (nodes, started):
            return searched(study, hidden, nodes, started, sizes, change_at)
    finally:
        shutil.rmtree(hidden)


def searched(
    study: Path, folder: Path, nodes: Nodes, started: list[subprocess.Popen[bytes]], sizes: list[int], change_at: int | None
) -> dict[str, Any]:  # fmt: skip
    from rich.console import Console
    from slimfront.search.events import ClusterRemarked, Event, TrialFinished
    from slimfront.search.execution import ray_slots
    from slimfront.search.run import run_search
    from slimfront.studies.store.store import Store
    from slimfront.studies.study_file.load import load_study

    plain_slot: type[ray_slots.Slot] = ray_slots.Slot
    slots: list[Any] = []
    changed: list[float] = []
    remarks: list[str] = []

    class NotedSlot(plain_slot):
        """A slot that notes when it had work."""

        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            self.made, self.since, self.until, self.trials = time.monotonic(), 0.0, 0.0, 0
            self.ended: list[float] = []
            slots.append(self)

        def begin(self, proposal: Any) -> None:
            self.since = self.since or time.monotonic()
            super().begin(proposal)

        def rest(self) -> None:
            self.until, self.trials = time.monotonic(), self.trials + 1
            self.ended.append(self.until)
            super().rest()

    def hear(event: Event) -> None:
        if isinstance(event, ClusterRemarked):
            remarks.append(event.text)
        if isinstance(event, TrialFinished) and event.trial.number == change_at:
            nodes.kill(started[0])
            nodes.add(sizes[0])
            changed.append(time.monotonic())

    ray_slots.Slot = NotedSlot
    url = f"sqlite:///{folder}/slots.db"
    try:
        run_search(load_study(str(study)), url, folder / "artifacts", Console(stderr=True), listeners=[hear])
    finally:
        ray_slots.Slot = plain_slot
    with Store(url) as store:
        found = store.trials("slots")
    return {**report(slots, changed), **counts(found), "remarks": remarks}


def report(slots: list[Any], changed: list[float]) -> dict[str, Any]:
    """How busy each slot was from its first trial to the end of its last, and when a new node began."""
    worked = [slot for slot in slots if slot.trials]
    seconds = max(slot.until for slot in worked) - min(slot.since for slot in worked)
    shares = [slot.busy_s / (slot.until - slot.since) for slot in worked]
    newest = [slot.since - changed[0] for slot in worked if changed and slot.made > changed[0]]
    trials = sum(slot.trials for slot in worked)
    began, done = max(slot.since for slot in worked), min(slot.until for slot in worked)
    together = sum(began < ended <= done for slot in worked for ended in slot.ended)
    return {
        "slots": len(worked),
        "trials": trials,
        "seconds": seconds,
        "trials_per_s": trials / seconds,
        "trials_per_s_once_all_work": together / (done - began),
        "least_busy": min(shares),
        "median_busy": statistics.median(shares),
        "new_node_at_work_after_s": min(newest) if newest else None,
    }


def counts(trials: list[Any]) -> dict[str, int]:
    """What became of the trials."""
    complete = [trial.digest for trial in trials if trial.state == "complete"]
    return {
        "distinct_policies_complete": len(set(complete)),
        "complete": len(complete),
        "failed": sum(trial.state == "failed" for trial in trials),
        "tried_again": sum(trial.retry_of is not None for trial in trials),
    }


PARTS = {"one": (12, None), "slots": (120, None), "change": (120, 30)}
"""Part -> trials, and the trial after which nodes change."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=PARTS, action="append")
    parser.add_argument("--quick", action="store_true", help="a third of the trials")
    parser.add_argument(
        "--nodes", type=int, nargs="+", default=[3, 3, 2], help="slots of each node, other than for one"
    )
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    figures = {}
    for part in arguments.part or PARTS:
        trials, change_at = (number and number // (3 if arguments.quick else 1) for number in PARTS[part])
        figures[part] = run(trials or 0, [1] if part == "one" else arguments.nodes, change_at)
        print(part, json.dumps(figures[part], indent=2))
    if {"one", "slots"} <= figures.keys():
        for rate, words in (("trials_per_s", "whole search"), ("trials_per_s_once_all_work", "once all slots work")):
            print(f"speed-up over one slot, {words}: {figures['slots'][rate] / figures['one'][rate]:.2f}")
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
