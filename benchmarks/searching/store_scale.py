"""What a trial costs the driver as a study grows: proposing, storing and ending it, and how long the study takes to open and show.

Trials are driven through the real `Search`, its database and its sampler; only what a worker would measure is made up, from the
policy: damages that add up, and a latency that follows the bits and channels. Random policies take the study to each checkpoint,
in both sets of tables as the driver writes them, but many to a statement; there the study is opened anew, and the sampler proposes
a window of trials, which are timed. `--storage` is a folder for SQLite, or the URL of a PostgreSQL database; a study that lies there
is continued. `--quick` takes under two minutes.
"""

from __future__ import annotations

import argparse
import io
import json
import resource
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.distributions import CategoricalDistribution, distribution_to_json
from optuna.storages._rdb import models
from optuna.trial import TrialState
from rich.console import Console
from rich.table import Table
from slimfront.core.measurement import Measurement
from slimfront.search.dashboard.serve import dashboard_of
from slimfront.search.driver import Search
from slimfront.search.optuna.storage import open_storage
from slimfront.search.sole_driver import sole_driver
from slimfront.search.trials.prepared_study import PreparedStudy, prepare
from slimfront.search.trials.worker import Stage
from slimfront.spaces.policies.policy import Policy
from slimfront.studies.reports.report import front_table, status_report
from slimfront.studies.store import tables
from slimfront.studies.store.store import Store
from slimfront.studies.study_file.load import load_study
from sqlalchemy import insert, select

NETWORK = '''
import torch
from slimfront.workloads.workload import Workload
from torch import nn
from torch.utils.data import TensorDataset


def workload(layers: int = 20) -> Workload:
    """An untrained network of linear layers: its trials are made up."""
    torch.manual_seed(0)
    parts = [part for _ in range(layers - 1) for part in (nn.Linear(16, 16), nn.ReLU())]
    model = nn.Sequential(*parts, nn.Linear(16, 4)).eval()
    data = [TensorDataset(torch.randn(32, 16), torch.arange(32) % 4) for _ in range(4)]
    return Workload(model, *data, data[0].tensors[0][:1])
'''

STUDY = """
study: scale
workload: network.py:workload
workload_options: {{layers: {layers}}}
target: cpu-openvino
reference: float32
objectives: [accuracy_drop, latency_ms]
constraints: [accuracy_drop <= 0.3]
budget: {{trials: 1000000}}
sampler: {sampler}
sensitivity: false
workers: 0
space: {{float_precision: [float32], weight_bits: [3, 4, 8, 32], activation_bits: [8, 32], channel_sparsity: [0, 0.25, 0.5]}}
"""

OBJECTIVES = ("accuracy_drop", "latency_ms")

CHUNK = 1000
"""Trials that are written at once to reach a checkpoint."""

WINDOW = 20
"""Trials that are timed at each checkpoint."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="no more than 1,000 trials")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here too")
    parser.add_argument("--layers", type=int, default=20, help="three knobs each")
    parser.add_argument("--at", default="100,1000,10000", help="checkpoints, comma-separated")
    parser.add_argument("--sampler", default="policy", help="proposes the trials that are timed")
    parser.add_argument("--storage", help="a folder, or a PostgreSQL URL; a temporary folder by default")
    options = parser.parse_args()
    marks = [int(mark) for mark in options.at.split(",") if not options.quick or int(mark) <= 1000]
    with tempfile.TemporaryDirectory(prefix="slimfront-scale-") as temporary:
        is_url = options.storage is not None and "://" in options.storage
        folder = Path(temporary if options.storage is None or is_url else options.storage)
        folder.mkdir(parents=True, exist_ok=True)
        url = options.storage if is_url else f"sqlite:///{folder / 'scale.db'}"
        rows = [figures_at(mark, folder, url, options) for mark in marks]
    show(rows)
    if options.json:
        options.json.write_text(json.dumps({"layers": options.layers, "rows": rows}, indent=1))


def figures_at(mark: int, folder: Path, url: str, options: argparse.Namespace) -> dict[str, Any]:
    """What is timed at a checkpoint."""
    with opened(folder, url, options.layers, "random") as (search, _):
        trial(search)
        fill(search, mark - len(search.store.trial_summaries("scale")))
    with opened(folder, url, options.layers, options.sampler) as (search, resume):
        knobs = len(search.prepared.space.knobs)
        while search._proposals.has_first:  # anchors, which the sampler does not propose
            trial(search)
        trial(search)  # fits the surrogate from scratch
        timed = 1e3 * np.mean([proposed_and_ended(search) for _ in range(WINDOW)], axis=0)
    with Store(url) as store:
        shown = {name: seconds(lambda call=call: show_quietly(call)) for name, call in readers(store).items()}
        shown |= dashboard_seconds(store)
    return {
        "trials": mark, "knobs": knobs,
        **dict(zip(("ask_ms", "ask_cpu_ms", "tell_ms", "tell_cpu_ms"), timed.tolist(), strict=True)),
        "resume_s": resume[0], "resume_cpu_s": resume[1], **{f"{name}_s": value for name, value in shown.items()},
        "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }  # fmt: skip


@contextmanager
def opened(folder: Path, url: str, layers: int, sampler: str):
    """A search of the study, and how long it took to resume, without loading the model and timing the reference."""
    prepared = prepared_study(folder, layers, sampler)
    with Store(url) as store, sole_driver(store, "scale"):
        before = clock()
        search = Search(prepared, store, folder / "artifacts")
        yield search, (clock() - before).tolist()


def prepared_study(folder: Path, layers: int, sampler: str) -> PreparedStudy:
    (folder / "network.py").write_text(NETWORK)
    (folder / "study.yaml").write_text(STUDY.format(layers=layers, sampler=sampler))
    return prepare(load_study(str(folder / "study.yaml")))


def fill(search: Search, count: int) -> None:
    """Complete trials with random policies, as the driver would have stored them."""
    number = len(search.store.trial_summaries("scale"))
    generator = np.random.default_rng(number)
    for begin in range(number, number + count, CHUNK):
        made = [
            _random_trial(search.prepared, each, generator) for each in range(begin, min(begin + CHUNK, number + count))
        ]
        _fill_ours(search.store, made)
        _fill_optuna(search.optuna.optuna_study, made)


Made = tuple[int, dict[str, Any], Policy, list[Measurement]]
"""Number, parameters, policy and figures of a trial."""


def _random_trial(prepared: PreparedStudy, number: int, generator: np.random.Generator) -> Made:
    parameters = {knob.name: knob.choices[int(generator.integers(len(knob.choices)))] for knob in prepared.space.knobs}
    policy = prepared.space.policy(parameters)
    return number, parameters, policy, made_up(prepared, policy, number)


def _fill_ours(store: Store, made: Sequence[Made]) -> None:
    with store._database.writing() as session:
        study_id = session.query(tables.Study.id).filter_by(name="scale").scalar()
        rows = [
            {"study_id": study_id, "number": number, "policy": policy.to_json(), "digest": policy.digest, "state": "complete",
             "worker": "made up", "started": tables.now(), "finished": tables.now(), "violations": []}
            for number, _, policy, _ in made
        ]  # fmt: skip
        session.execute(insert(tables.Trial), rows)
        ids = dict(session.query(tables.Trial.number, tables.Trial.id).filter(tables.Trial.number >= made[0][0]).all())
        measured = [
            {**figure.to_dict(), "study_id": study_id, "trial_id": ids[number], "rung": 0, "target": "cpu-openvino"}
            for number, _, _, figures in made
            for figure in figures
        ]
        session.execute(insert(tables.MeasurementRow), measured)


def _fill_optuna(study: optuna.Study, made: Sequence[Made]) -> None:
    now = datetime.now()
    backend = study._storage._backend  # pyright: ignore[reportAttributeAccessIssue]
    with backend.scoped_session() as session, session.begin():
        rows = [
            {"study_id": study._study_id, "number": number, "state": TrialState.COMPLETE, "datetime_start": now,
             "datetime_complete": now} for number, *_ in made
        ]  # fmt: skip
        session.execute(insert(models.TrialModel), rows)
        number, trial_id, of_study = models.TrialModel.number, models.TrialModel.trial_id, models.TrialModel.study_id
        known = session.execute(select(number, trial_id).where(of_study == study._study_id, number >= made[0][0])).all()
        ids = {each.number: each.trial_id for each in known}
        offered = {knob: CategoricalDistribution(choices) for knob, choices in choices_in(study).items()}
        texts = {knob: distribution_to_json(distribution) for knob, distribution in offered.items()}
        session.execute(insert(models.TrialParamModel), [
            {"trial_id": ids[number], "param_name": knob, "param_value": offered[knob].to_internal_repr(value), "distribution_json": texts[knob]}
            for number, parameters, _, _ in made for knob, value in parameters.items()
        ])  # fmt: skip
        values = {number: {figure.name: figure.value for figure in figures} for number, _, _, figures in made}
        session.execute(insert(models.TrialValueModel), [
            {"trial_id": ids[number], "objective": place, "value": found[name], "value_type": models.TrialValueModel.TrialValueType.FINITE}
            for number, found in values.items() for place, name in enumerate(OBJECTIVES)
        ])  # fmt: skip
        noted = {
            number: {**values[number], "policy": policy.to_json(), "digest": policy.digest}
            for number, _, policy, _ in made
        }
        session.execute(insert(models.TrialUserAttributeModel), [
            {"trial_id": ids[number], "key": key, "value_json": json.dumps(value)}
            for number, about in noted.items() for key, value in about.items()
        ])  # fmt: skip
        session.execute(insert(models.TrialSystemAttributeModel), [
            {"trial_id": ids[number], "key": key, "value_json": text} for number in values
            for key, text in (("constraints:accuracy_drop <= 0.3", "-0.1"), ("constraints", "[-0.1]"))
        ])  # fmt: skip


def choices_in(study: optuna.Study) -> dict[str, tuple[Any, ...]]:
    """The knobs of a study that has a trial."""
    known = study.get_trials(deepcopy=False)[0].distributions
    return {name: found.choices for name, found in known.items() if isinstance(found, CategoricalDistribution)}


def trial(search: Search) -> None:
    """One trial through the driver."""
    proposed_and_ended(search)


def proposed_and_ended(search: Search) -> np.ndarray:
    """Seconds that proposing and starting a trial takes, and that storing its figures and ending it takes, each by both clocks."""
    start = clock()
    proposal = search.propose()
    assert proposal is not None
    asked = clock()
    made = made_up(search.prepared, proposal.policy, proposal.number)
    began = clock()
    search.record(proposal.number, Stage("scored", measurements=made))
    search.finish(proposal.number)
    return np.concatenate([asked - start, clock() - began])


def clock() -> np.ndarray:
    """Seconds by the wall and of this process: the latter leave out what other programs take."""
    return np.array([time.perf_counter(), time.process_time()])


def made_up(prepared: PreparedStudy, policy: Policy, number: int) -> list[Measurement]:
    """Figures of a policy: damages add up, times follow bits and channels, with a little noise."""
    noise = np.random.default_rng(number).normal(size=2)
    damage, cost = 1e-4, 0.05
    for index, layer in enumerate(prepared.layers):
        chosen = policy.layer(layer.name)
        hurt = 1 + index % 7
        damage += 0.02 * hurt * (4.0 ** (2 - chosen.weight_bits) + 0.05 * 4.0 ** (4 - chosen.activation_bits))
        cost += (chosen.weight_bits + chosen.activation_bits) / 64
    damage += 0.03 * sum(removed**2 for removed in policy.channels.values())
    cost *= 1 - 0.5 * float(np.mean([*policy.channels.values(), 0.0]))
    damage *= float(np.exp(0.1 * noise[0]))
    drop, latency = 1 - float(np.exp(-damage / 3)), cost / 10 * float(np.exp(0.01 * noise[1]))
    values = {
        "accuracy": 1 - drop, "accuracy_drop": drop, "kl": damage, "latency_ms": latency, "speedup": 0.1 / latency,
        "flops": 1e6 * cost, "bops": 1e9 * cost, "parameters": 5e3 * cost, "packed_bytes": 2e4 * cost, "artifact_bytes": 3e4 * cost,
    }  # fmt: skip
    return [Measurement.exact(name, value, "made up") for name, value in values.items()]


def readers(store: Store) -> dict[str, Callable[[], Any]]:
    return {"front": lambda: front_table(store, "scale"), "status": lambda: status_report(store, "scale")}


def show_quietly(call: Callable[[], Any]) -> None:
    Console(file=io.StringIO(), width=100).print(call())


def dashboard_seconds(store: Store) -> dict[str, float]:
    """Seconds until the study's page has its data, the first time and again."""
    app = dashboard_of(store, open_storage(store))
    study = open_storage(store).get_study_id_from_name("scale")
    calls = {"dashboard": f"/api/studies/{study}", "dashboard_again": f"/api/studies/{study}"}
    return {name: seconds(lambda path=path: get(app, path)) for name, path in calls.items()}


def get(app: Callable[..., Any], path: str) -> bytes:
    status: list[str] = []
    environ = {
        "REQUEST_METHOD": "GET", "PATH_INFO": path, "QUERY_STRING": "after=0", "wsgi.input": io.BytesIO(),
        "SERVER_NAME": "127.0.0.1", "SERVER_PORT": "80", "HTTP_HOST": "127.0.0.1", "wsgi.url_scheme": "http",
        "wsgi.errors": io.StringIO(), "SCRIPT_NAME": "",
    }  # fmt: skip
    body = b"".join(app(environ, lambda line, *_: status.append(line)))
    assert status[0].startswith("200"), (status, body[:300])
    return body


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def show(rows: Sequence[dict[str, Any]]) -> None:
    table = Table(*rows[0])
    for row in rows:
        table.add_row(*(f"{value:.3g}" if isinstance(value, float) else str(value) for value in row.values()))
    Console(width=200).print(table)


if __name__ == "__main__":
    main()
