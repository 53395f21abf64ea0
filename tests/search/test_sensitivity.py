"""What single choices damage, held against models changed by hand, and the greedy path against all paths."""

import copy
import os
import time
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from slimfront.core.threads import torch_threads
from slimfront.search.budget import MAX_ANCHORS
from slimfront.search.driver import Search
from slimfront.search.events import Event, SensitivityMeasured, SensitivityUnmeasured
from slimfront.search.sampler.dimensions import encode, search_dimension
from slimfront.search.sampler.greedy_path import LEVELS, path_policies
from slimfront.search.sampler.study_terms import cost_of, greedy_policies, space_dimensions
from slimfront.search.sampler.surrogate.analytic_cost import COUNTED, OF_MACHINES
from slimfront.search.sensitivity import Sensitivity, known_damage, measured, probes, why_not
from slimfront.search.trials.prepared_study import PreparedStudy, prepare
from slimfront.spaces.knobs.kind import by_halves
from slimfront.studies.reports.progress import sensitivity_text
from slimfront.studies.store.store import Store
from slimfront.studies.study_file.spec import StudySpec
from torch import nn
from torch.nn import functional
from torch.nn.modules.module import register_module_forward_hook

SPACE = {
    "weight_bits": [2, 3, 8, 32],
    "activation_bits": [4, 32],
    "channel_sparsity": [0, 0.5],
    "float_precision": ["float32"],  # with the reference below: nothing is chosen by timing
}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> PreparedStudy:
    document = {
        "study": "tiny", "workload": f"{Path(__file__).with_name('tiny_workload.py')}:workload", "target": "cpu-openvino",
        "objectives": ["accuracy_drop", "latency_ms"], "space": SPACE, "budget": {"trials": 30}, "reference": "float32",
    }  # fmt: skip
    return prepare(StudySpec.from_document(document, "here", tmp_path_factory.mktemp("sensitivity")))


@pytest.fixture
def store(tmp_path: Path):
    with Store(f"sqlite:///{tmp_path / 'study.db'}") as opened:
        yield opened


def on_grid(weight: torch.Tensor, bits: int) -> torch.Tensor:
    high = 2 ** (bits - 1) - 1
    step = weight.flatten(1).abs().amax(1).reshape(-1, *[1] * (weight.ndim - 1)) / high
    return (weight / step).round() * step


def test_each_knob_is_measured_alone(prepared) -> None:
    found = probes(prepared.space)
    assert [probe.knob for probe in found] == prepared.space.knobs
    for probe in found:
        parameters = prepared.space.parameters(probe.policy)
        whole = prepared.space.parameters(prepared.space.uniform({}))
        assert {name for name in whole if parameters[name] != whole[name]} == {probe.knob.name}
    assert {probe.choice for probe in found} == {3, 4, 0.5}  # guessed at 0.25, 1/16 and 0.25 nats; 2 bits at 1


def test_a_weight_s_damage_is_that_of_the_model_rounded_by_hand(prepared) -> None:
    probe = next(probe for probe in probes(prepared.space) if probe.knob.name.endswith("fc.weight_bits"))
    workload = prepared.context.workload
    rounded = copy.deepcopy(workload.model)
    rounded.fc.weight.data = on_grid(rounded.fc.weight.data, 3)
    chosen = torch.linspace(0, len(workload.validation) - 1, 64).round().long()
    inputs = torch.stack([workload.validation[int(index)][0] for index in chosen])
    with torch.no_grad():
        expected, outputs = (model(inputs).double().log_softmax(1) for model in (workload.model, rounded))
    by_hand = functional.kl_div(outputs, expected, log_target=True, reduction="batchmean")
    (record,) = measured(prepared, [probe])
    assert record.kl.value == pytest.approx(float(by_hand), rel=1e-3)
    assert (record.kl.n, record.choice, record.digest) == (64, 3, probe.policy.digest)
    assert workload.model.fc.weight.unique().numel() > 7 * 2  # the workload's own model keeps its weights


def test_a_choice_the_model_does_not_bear_is_named_and_left_out(prepared) -> None:
    model = copy.deepcopy(prepared.context.workload.model)

    def shape_written_into_forward(stem: nn.Module, _inputs: tuple) -> None:
        if len(stem.weight) != 16:
            raise ZeroDivisionError("sixteen channels, please")

    model.stem.register_forward_pre_hook(shape_written_into_forward)
    context = replace(prepared.context, workload=replace(prepared.context.workload, model=model))
    wanted, heard = probes(prepared.space), []
    records = list(measured(replace(prepared, context=context), wanted, heard.append))
    left_out = next(probe.knob.name for probe in wanted if probe.knob.kind == "channels")
    [unmeasured] = heard
    assert isinstance(unmeasured, SensitivityUnmeasured)
    assert unmeasured.reason.startswith(
        f"{left_out} = 0.5 cannot be measured alone: CompressionError: with the blocks and"
    )
    assert unmeasured.reason.endswith(": ZeroDivisionError: sixteen channels, please")
    assert [record.knob for record in records] == [p.knob.name for p in wanted if p.knob.name != left_out]
    model.stem.register_forward_pre_hook(lambda *_: 1 / 0)
    assert list(measured(replace(prepared, context=context), wanted, heard.append)) == []
    assert heard[1:] == [SensitivityUnmeasured("no choice can be measured alone: ZeroDivisionError: division by zero")]


def test_other_choices_are_scaled_like_the_measured_one() -> None:
    knob = search_dimension("0.fc.weight_bits", "weight_bits", (2, 4, 32), 32, known={4: 0.5})
    assert np.exp(knob.prior[:2]) == pytest.approx([16 * 0.5, 0.5])  # a fourth per bit
    assert knob.measured
    assert not search_dimension("0.fc.weight_bits", "weight_bits", (2, 4, 32), 32).measured


def test_the_greedy_path_is_as_good_as_any_where_steps_are_even() -> None:
    """Eight knobs that save the same: at each level the least harmful ones are switched, as trying all subsets finds."""
    harms = np.array([0.004, 0.3, 0.02, 0.08, 0.006, 0.15, 0.5, 0.04])
    knobs = [search_dimension(f"{i}.k", "k", (0, 1), 0, known={1: harm}) for i, harm in enumerate(harms)]
    path = path_policies(knobs, np.zeros(8, dtype=int), lambda codes: -codes.sum(axis=1).astype(float))
    subsets = np.array(list(product((0, 1), repeat=8)))
    for codes in path:
        rivals = subsets[subsets.sum(axis=1) == codes.sum()]
        assert codes @ harms == pytest.approx((rivals @ harms).min())
    for level in LEVELS:
        most = max((codes.sum() for codes in path if codes @ harms <= level), default=0)
        assert most == subsets[subsets @ harms <= level].sum(axis=1).max()


def test_knobs_that_were_not_measured_stay_as_they_are() -> None:
    knobs = [search_dimension("0.k", "k", (0, 1), 0, known={1: 0.01}), search_dimension("1.k", "k", (0, 1), 0)]
    path = path_policies(knobs, np.zeros(2, dtype=int), lambda codes: -codes.sum(axis=1).astype(float))
    assert [codes.tolist() for codes in path] == [[1, 0]]


@pytest.mark.parametrize(
    ("cost", "narrowest"), [("bops", 2), ("latency_ms", 8)], ids=["counted", "as machines have them"]
)
def test_the_path_s_policies_are_cheaper_one_after_the_other(prepared, cost: str, narrowest: int, tmp_path) -> None:
    document = {**prepared.spec.model_dump(mode="json", exclude_unset=True), "objectives": ["accuracy_drop", cost]}
    prepared = prepare(StudySpec.from_document(document, "here", tmp_path))
    known = known_damage(prepared.space, list(measured(prepared, probes(prepared.space))))
    assert any(knob.measured for knob in space_dimensions(prepared.space, known))
    policies = greedy_policies(prepared, known)
    layers = [[policy.layer(name) for name in ("stem", "conv", "fc")] for policy in policies]
    assert min(layer.weight_bits for each in layers for layer in each) == narrowest  # machines gain nothing below 8
    costs = cost_of(prepared)(
        np.array([encode(space_dimensions(prepared.space), prepared.space.parameters(policy)) for policy in policies])
    )
    saved = costs[:, [COUNTED.index("bops")] if cost == "bops" else list(OF_MACHINES)].prod(axis=1)
    assert (np.diff(saved) < 0).all()
    assert len(policies) >= 2


def test_the_path_is_recovered_where_the_space_recovers(prepared, tmp_path) -> None:
    space = {**SPACE, "recovery_epochs": [0, 2, 1]}
    document = {**prepared.spec.model_dump(mode="json", exclude_unset=True), "space": space}
    recovering = prepare(StudySpec.from_document(document, "here", tmp_path))
    known = known_damage(recovering.space, list(measured(recovering, probes(recovering.space))))
    assert {policy.recovery.epochs for policy in greedy_policies(recovering, known)} == {2}


@pytest.mark.slow
@pytest.mark.usefixtures("short_timings")
def test_it_follows_the_anchors_is_measured_once_and_known_to_later_studies(
    prepared: PreparedStudy, store: Store, tmp_path: Path
) -> None:
    first = Search(prepared, store, tmp_path / "artifacts")
    assert store.sensitivities("tiny") == []  # nothing waits for it
    anchors = prepared.space.anchors()[:MAX_ANCHORS]
    proposals = [first.propose() for _ in anchors]
    assert [proposal.policy for proposal in proposals] == anchors
    assert store.sensitivities("tiny") == []
    following = [first.propose().policy for _ in range(4)]
    records = store.sensitivities("tiny")
    assert len(records) == len(prepared.space.knobs)
    assert sum(record.seconds for record in records) > 0
    expected = by_halves(greedy_policies(prepared, known_damage(prepared.space, records)))
    path = [policy for policy in dict.fromkeys(expected) if policy not in anchors][:4]
    assert following[: len(path)] == path
    first.interrupt()
    Search(prepared, store, tmp_path / "artifacts").propose()  # goes on
    assert store.sensitivities("tiny") == records
    renamed = prepared.spec.model_copy(update={"study": "later"})
    Search(replace(prepared, spec=renamed), store, tmp_path / "artifacts")
    later = store.sensitivities("later")
    assert {record.source for record in later} == {"tiny"}
    assert [record.kl for record in later] == [record.kl for record in records]
    assert sensitivity_text(later).endswith(f"{len(later)} of them known from earlier studies")


def stored_study(prepared: PreparedStudy, store: Store) -> None:
    store.create_study(prepared.spec, "fingerprint", {}, {})


def test_alongside_workers_a_thread_measures_and_the_driver_tells(prepared: PreparedStudy, store: Store) -> None:
    stored_study(prepared, store)
    heard: list[Event] = []
    sensitivity, threads = Sensitivity(store, prepared, tell=heard.append), set()
    watch = register_module_forward_hook(lambda *_: threads.add(torch.get_num_threads()))
    with torch_threads(2), watch:
        sensitivity.start(sorted(os.sched_getaffinity(0)))
        assert not heard  # only where the driver looks
        while sensitivity.is_running():
            time.sleep(0.01)
        assert torch.get_num_threads() == 2
    assert threads == {1}  # workers have the cores
    count = len(prepared.space.knobs)
    assert heard[-1] == SensitivityMeasured(count, count)
    assert not sensitivity.missing
    assert len(store.sensitivities("tiny")) == count


def test_what_was_measured_before_the_seconds_were_spent_is_kept_and_the_rest_measured_by_the_next_run(
    prepared: PreparedStudy, store: Store
) -> None:
    stored_study(prepared, store)
    heard: list[Event] = []
    Sensitivity(store, prepared, seconds=0, tell=heard.append).measure()
    count = len(prepared.space.knobs)
    spent = "a tenth of the time budget is spent on it"
    assert heard == [
        SensitivityMeasured(1, count),
        SensitivityUnmeasured(f"{count - 1} of {count} choices are not measured alone: {spent}"),
    ]
    assert len(store.sensitivities("tiny")) == 1
    Sensitivity(store, prepared).measure()
    assert len(store.sensitivities("tiny")) == count


@pytest.mark.slow
@pytest.mark.usefixtures("short_timings")
def test_it_is_left_out_where_it_makes_no_sense_or_is_not_wanted(
    prepared: PreparedStudy, store: Store, tmp_path: Path
) -> None:
    unwanted = replace(prepared, spec=prepared.spec.model_copy(update={"sensitivity": False}))
    Search(unwanted, store, tmp_path / "artifacts")
    assert store.sensitivities("tiny") == []
    short = replace(prepared, spec=prepared.spec.replaced(trials=23))
    assert why_not(short) == "a budget below 24 trials is mostly anchors"
