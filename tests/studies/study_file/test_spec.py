"""The study file: what it means, and one line naming file and key for everything that can be wrong with it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from slimfront.core.errors import StudyFileError
from slimfront.core.metrics import METRICS
from slimfront.spaces.presets import PRESETS
from slimfront.studies.study_file.constraint import Constraint
from slimfront.studies.study_file.load import load_study, shipped_studies
from slimfront.studies.study_file.spec import StudySpec, incompatible_changes

FULL = """\
study: digits-demo
workload: digits
workload_options: {fold: 3}
target: cpu-openvino
objectives: [accuracy_drop, latency_ms]
constraints: ["accuracy_drop <= 0.05", "artifact_bytes < 200000"]
seed: 7
workers: 2
budget: {trials: 40, timeout_s: 600}
sampler: nsgaii
space:
  granularity: block
  weight_bits: [4, 8, 32]
  activation_bits: [8, 32]
  channel_sparsity: [0, 0.25, 0.5]
  weight_sparsity: [0, 0.5, "2:4"]
  width: [1.0, 0.75, 0.5]
  recovery_epochs: [0, 2]
  keep: ["stem.*"]
recovery: {learning_rate: 1e-3, temperature: 3, alpha: 0.5, batch_size: 32}
"""

SMALL = """\
study: small
workload: digits
target: cpu-openvino
objectives: [accuracy_drop, latency_ms]
budget: {trials: 40}
space: {weight_bits: [4, 32]}
"""


def write(folder: Path, text: str) -> str:
    path = folder / "study.yaml"
    path.write_text(text)
    return str(path)


def test_a_full_file_is_read(tmp_path):
    spec = load_study(write(tmp_path, FULL))
    assert spec.workload_options == {"fold": 3}
    assert spec.constraints == (Constraint("accuracy_drop", "<=", 0.05), Constraint("artifact_bytes", "<", 200000.0))
    assert (spec.seed, spec.workers, spec.sampler) == (7, 2, "nsgaii")
    assert (spec.budget.trials, spec.budget.timeout_s) == (40, 600.0)
    assert spec.space.weight_sparsity == (0.0, 0.5, "2:4")
    assert spec.space.keep == ("stem.*",)
    assert spec.recovery.learning_rate == 0.001  # 1e-3 is text to YAML 1.1
    assert spec.base_folder == tmp_path


def test_knobs_not_named_are_off(tmp_path):
    space = load_study(write(tmp_path, SMALL)).space
    assert space.granularity == "layer"
    assert (space.activation_bits, space.channel_sparsity, space.weight_sparsity) == ((32,), (0.0,), (0.0,))
    assert (space.width, space.recovery_epochs, space.keep) == ((1.0,), (0,), ())


BITS = {"weight_bits": (8, 32), "activation_bits": (8, 32)}


def test_a_file_without_a_space_takes_the_preset_of_the_models_family(tmp_path):
    spec = load_study(write(tmp_path, SMALL.replace("space: {weight_bits: [4, 32]}\n", "")))
    full = spec.replaced(trials=3).with_preset("transformer", BITS)
    assert full.space.preset == "transformer"
    assert (full.space.depth, full.space.weight_bits) == ((1.0, 0.75, 0.5), (8, 32))  # the target takes no 4 bits
    assert full.recovery.optimizer == "adamw"
    assert StudySpec.from_json(full.to_json()) == full == full.with_preset("cnn", BITS)
    assert full.base_folder == tmp_path


def test_what_a_file_says_goes_before_the_preset(make_spec):
    spec = make_spec(space={"preset": "recurrent", "width": [1.0, 0.5]}, recovery={"learning_rate": 0.1})
    full = spec.with_preset("cnn", BITS)
    assert (full.space.width, full.recovery.learning_rate, full.recovery.optimizer) == ((1.0, 0.5), 0.1, "adamw")
    assert full.space.recovery_epochs == PRESETS["recurrent"].space["recovery_epochs"]


@pytest.mark.parametrize(
    ("given", "reuses"),
    [({}, True), ({"reuse_recovered": False}, False), ({"recovery": {"steps": ["prune", "quantize", "train"]}}, False)],
    ids=["nothing said", "turned off", "trained on grids"],
)
def test_a_preset_trains_a_structure_once_for_all_its_bits(make_spec, given, reuses):
    full = make_spec(space={"preset": "cnn"}, **given).with_preset("cnn", BITS)
    assert full.reuse_recovered is reuses


def test_a_space_without_a_preset_stays_as_it_is(make_spec):
    assert make_spec().with_preset("cnn", BITS) == make_spec()


def test_a_spec_is_frozen(make_spec):
    with pytest.raises(ValueError, match="frozen"):
        make_spec().seed = 3


# SMALL with one text replaced -> the key and the beginning of the problem.
BAD = {
    "unknown key": (
        "workload: digits",
        "workload: digits\nworklod: x",
        "worklod",
        "unknown key; did you mean workload?",
    ),
    "unknown key, nothing near": (
        "study: small",
        "study: small\nzzz: 1",
        "zzz",
        "unknown key; known are artifacts, budget,",
    ),
    "unknown key in a part": (
        "weight_bits",
        "wieght_bits",
        "space.wieght_bits",
        "unknown key; did you mean weight_bits?",
    ),
    "key that only the database has": ("study: small", "study: small\nbase_folder: /", "base_folder", "unknown key"),
    "key that is a number": ("study: small", "study: small\n3: x", "3", "keys must be text"),
    "missing study": ("study: small\n", "", "study", "is missing"),
    "unknown preset": ("{weight_bits: [4, 32]}", "{preset: gan}", "space.preset", "'gan' is not one of 'none', 'auto'"),
    "missing budget": ("budget: {trials: 40}", "", "budget", "is missing"),
    "name with a space": ("study: small", "study: my study", "study", "may only hold letters"),
    "name that is a number": ("study: small", "study: 2024", "study", "must be text, not 2024"),
    "empty workload": ("workload: digits", 'workload: ""', "workload", "must not be empty"),
    "options that are a list": (
        "study: small",
        "study: small\nworkload_options: [1]",
        "workload_options",
        "must be a map",
    ),
    "options with a date": (
        "study: small",
        "study: small\nworkload_options: {since: 2024-01-01}",
        "workload_options.since",
        "must be text, a number, true, false, null, a list or a mapping, not datetime.date(2024, 1, 1)",
    ),
    "target that is a list": ("target: cpu-openvino", "target: [a]", "target", "must be text, not ['a']"),
    "one objective": ("[accuracy_drop, latency_ms]", "[latency_ms]", "objectives", "a front needs 2 to 4 objectives"),
    "one objective as text": (
        "[accuracy_drop, latency_ms]",
        "latency_ms",
        "objectives",
        "must be a list, not 'latency_ms'",
    ),
    "five objectives": (
        "[accuracy_drop, latency_ms]",
        "[accuracy_drop, latency_ms, flops, bops, parameters]",
        "objectives",
        "a front needs 2 to 4 objectives, not 5",
    ),
    "objective twice": ("[accuracy_drop, latency_ms]", "[flops, flops]", "objectives", "flops appears twice"),
    "unknown objective": (
        "latency_ms]",
        "latency]",
        "objectives.1",
        "'latency' cannot be an objective; did you mean latency_ms?",
    ),
    "objective on the test split": (
        "latency_ms]",
        "test_accuracy]",
        "objectives.1",
        "'test_accuracy' cannot be an objective",
    ),
    "objective of a simulation": (
        "latency_ms]",
        "simulated_accuracy]",
        "objectives.1",
        "'simulated_accuracy' cannot be",
    ),
    "constraint of another form": (
        "study: small",
        "study: small\nconstraints: [flops == 3]",
        "constraints.0",
        "'flops == 3' is not NAME OP",
    ),
    "constraint that is a number": (
        "study: small",
        "study: small\nconstraints: [3]",
        "constraints.0",
        "3 is not NAME OP NUMBER",
    ),
    "constraint on nothing known": (
        "study: small",
        "study: small\nconstraints: [flop < 3]",
        "constraints.0",
        "'flop' cannot be constrained; did you mean flops?",
    ),
    "constraint without a number": (
        "study: small",
        "study: small\nconstraints: [flops < many]",
        "constraints.0",
        "'many' in 'flops < many' is not a",
    ),
    "constraint at infinity": ("study: small", "study: small\nconstraints: [flops < inf]", "constraints.0", "'inf' in"),
    "constraint twice": (
        "study: small",
        "study: small\nconstraints: [flops<3, flops < 3]",
        "constraints",
        "flops < 3 appears twice",
    ),
    "negative seed": ("study: small", "study: small\nseed: -1", "seed", "must be at least 0, not -1"),
    "half a worker": (
        "study: small",
        "study: small\nworkers: 1.5",
        "workers",
        "must be a whole number from 0 to 1e+09, or auto, not 1.5",
    ),
    "workers: yes": (
        "study: small",
        "study: small\nworkers: yes",
        "workers",
        "must be a whole number from 0 to 1e+09, or auto, not True",
    ),
    "trials in words": ("trials: 40", "trials: ten", "budget.trials", "must be a whole number, not 'ten'"),
    "negative trials": ("trials: 40", "trials: -40", "budget.trials", "must be at least 1, not -40"),
    "no trials": ("trials: 40", "trials: 0", "budget.trials", "must be at least 1, not 0"),
    "no budget": ("{trials: 40}", "{}", "budget", "give trials, timeout_s or both"),
    "budget that is a number": ("{trials: 40}", "40", "budget", "must be a mapping of keys, not 40"),
    "time that is up": ("trials: 40", "timeout_s: 0", "budget.timeout_s", "must be > 0, not 0"),
    "endless time": ("trials: 40", "timeout_s: .inf", "budget.timeout_s", "must be a finite number, not inf"),
    "unknown sampler": (
        "study: small",
        "study: small\nsampler: cma",
        "sampler",
        "'cma' is not one of 'policy', 'tpe', 'nsgaii'",
    ),
    "unknown granularity": ("{weight", "{granularity: net, weight", "space.granularity", "'net' is not one of 'layer'"),
    "impossible bits": ("[4, 32]", "[4, 7]", "space.weight_bits.1", "7 is not one of 2, 3, 4, 5, 6, 8, 16, 32"),
    "impossible activations": (
        "weight_bits: [4, 32]",
        "activation_bits: [2, 32]",
        "space.activation_bits.0",
        "2 is not one of 4, 6, 8, 16, 32",
    ),
    "bfloat16 activations alone": (
        "weight_bits: [4, 32]",
        "weight_bits: [8, 32], activation_bits: [8, 16, 32]",
        "space",
        "activation_bits: 16 is bfloat16, of layers whose weights are too; add it to weight_bits",
    ),
    "bits in words": ("[4, 32]", "[four, 32]", "space.weight_bits.0", "must be a whole number, not 'four'"),
    "bits that are no list": ("[4, 32]", "4", "space.weight_bits", "must be a list, not 4"),
    "no bits": ("[4, 32]", "[]", "space.weight_bits", "must not be empty"),
    "bits twice": ("[4, 32]", "[4, 32, 4]", "space.weight_bits", "4 appears twice"),
    "all channels removed": (
        "weight_bits: [4, 32]",
        "channel_sparsity: [0, 1]",
        "space.channel_sparsity.1",
        "must be < 1, not 1",
    ),
    "negative sparsity": (
        "weight_bits: [4, 32]",
        "weight_sparsity: [-0.1]",
        "space.weight_sparsity.0",
        "-0.1 is not a number in [0, 1)",
    ),
    "2:4 without quotes": (
        "weight_bits: [4, 32]",
        "weight_sparsity: [0, 2:4]",
        "space.weight_sparsity.1",
        '124 is not a number in [0, 1) or, in quotes, "2:4"',
    ),
    "no width": ("weight_bits: [4, 32]", "width: [1, 0]", "space.width.1", "must be > 0, not 0"),
    "wider": ("weight_bits: [4, 32]", "width: [1, 2]", "space.width.1", "must be at most 1, not 2"),
    "NaN width": ("weight_bits: [4, 32]", "width: [1, .nan]", "space.width.1", "must be a finite number, not nan"),
    "negative epochs": (
        "weight_bits: [4, 32]",
        "recovery_epochs: [0, -2]",
        "space.recovery_epochs.1",
        "must be at least 0, not -2",
    ),
    "keep that is text": ("weight_bits: [4, 32]", "keep: stem", "space.keep", "must be a list, not 'stem'"),
    "empty space": ("[4, 32]", "[4]", "space", "empty space: give at least one of width, recovery_epochs,"),
    "empty space of no knobs": ("{weight_bits: [4, 32]}", "{}", "space", "empty space"),
    "name of a folder": ("study: small", "study: ..", "study", "'..' is a folder of its own in a path"),
    "name of the same folder": ("study: small", "study: '.'", "study", "'.' is a folder of its own in a path"),
    "name of 5,000 characters": ("study: small", f"study: {'x' * 5000}", "study", "must have at most 128 characters"),
    "trials beyond counting": (
        "study: small",
        f"study: small\nworkers: {'9' * 50}",
        "workers",
        "must be a whole number from 0 to 1e+09, or auto, not 999",
    ),
    "2,000 choices": (
        "weight_bits: [4, 32]",
        f"recovery_epochs: {list(range(2000))}",
        "space.recovery_epochs",
        "must have at most 1000 entries",
    ),
    "alpha of 2": ("study: small", "study: small\nrecovery: {alpha: 2}", "recovery.alpha", "must be at most 1, not 2"),
    "learning rate in words": (
        "study: small",
        "study: small\nrecovery: {learning_rate: low}",
        "recovery.learning_rate",
        "must be a number above 0 or auto, not 'low'",
    ),
    "empty batches": (
        "study: small",
        "study: small\nrecovery: {batch_size: 0}",
        "recovery.batch_size",
        "must be at least 1, not 0",
    ),
}


@pytest.mark.parametrize(("text", "replacement", "key", "problem"), BAD.values(), ids=BAD)
def test_a_bad_file_is_one_line_naming_file_and_key(tmp_path, text, replacement, key, problem):
    assert SMALL.count(text) == 1
    path = write(tmp_path, SMALL.replace(text, replacement))
    with pytest.raises(StudyFileError) as caught:
        load_study(path)
    line = str(caught.value)
    assert line.startswith(f"{path}: {key}: {problem}")
    assert "\n" not in line


MALFORMED = {
    "syntax": ("study: a\nbudget: {trials: 3\nseed: 1\n", ":3: "),
    "duplicate key": ("study: a\nworkload: b\nstudy: c\n", ":3: the key study appears twice"),
    "duplicate key inside": ("budget:\n  trials: 3\n  trials: 4\n", ":3: the key trials appears twice"),
    "tab": ("budget:\n\ttrials: 3\n", ":2: "),
    "unknown tag": ("study: !!python/object:os.system x\n", ":1: could not determine a constructor for the tag"),
    "two documents": ("study: a\n---\nstudy: b\n", ":2: "),
    "empty": ("", ": is empty; a study file is a mapping of keys"),
    "a list": ("- study\n", ": holds a list; a study file is a mapping"),
    "a binary file": ("\x00\x01", ": is not YAML: "),
    "date": ("study: 2026-99-99\n", ":1: 2026-99-99 is not a valid timestamp; text stands in quotes"),
    "tagged whole number": ("a: 1\nseed: !!int x\n", ":2: x is not a valid int"),
    "tagged truth": ("seed: !!bool x\n", ":1: x is not a valid bool"),
    "tagged number": ("seed: !!float x\n", ":1: x is not a valid float"),
    "tagged date": ("seed: !!timestamp x\n", ":1: x is not a valid timestamp"),
    "hexadecimal without digits": ("seed: 0x_\n", ":1: 0x_ is not a valid int"),
    "binary without digits": ("seed: 0b_\n", ":1: 0b_ is not a valid int"),
    "5,000 digits": (f"seed: {'9' * 5000}\n", ":1: a number of 5,000 characters; at most 100 are allowed"),
    "no such character": ('study: "\\U99999999"\n', ":1: "),
    "doubling": (
        f"workload_options: [&a0 [x, x], {', '.join(f'&a{n} [*a{n - 1}, *a{n - 1}]' for n in range(1, 30))}]\n",
        ":1: more than 50,000 values, aliases written out",
    ),
    "an alias to itself": ("workload_options: &a [*a]\n", ":1: the alias a stands for nothing before it"),
    "a long list": (f"objectives: [{'0, ' * 500_000}0]\n", ": is larger than 1,048,576 bytes"),
    "many values": (f"objectives: [{'0, ' * 60_000}0]\n", ":1: more than 50,000 values"),
    "nested too deeply": ("[" * 20_000, ":1: lists and mappings are nested more than 50 deep"),
}


@pytest.mark.parametrize(("text", "problem"), MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_file_is_one_line_naming_file_and_line(tmp_path, text, problem):
    path = write(tmp_path, text)
    with pytest.raises(StudyFileError) as caught:
        load_study(path)
    line = str(caught.value)
    assert line.startswith(path + problem)
    assert "\n" not in line


def test_a_merge_may_override_a_key(tmp_path):
    merged = SMALL.replace("{weight_bits: [4, 32]}", "{<<: &base {weight_bits: [4, 32]}, weight_bits: [8, 32]}")
    assert load_study(write(tmp_path, merged)).space.weight_bits == (8, 32)


def test_a_folder_is_no_study_file(tmp_path):
    with pytest.raises(StudyFileError, match=r"cannot be read: is a directory$"):
        load_study(str(tmp_path))


def test_an_unknown_name_lists_the_shipped_studies():
    with pytest.raises(StudyFileError, match=r"^nope: no such file, and no shipped study; known are .*digits-demo"):
        load_study("nope")


@pytest.mark.parametrize("name", shipped_studies())
def test_shipped_studies_load_by_name_from_any_folder(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    spec = load_study(name)
    assert spec.study == name
    assert spec.base_folder == tmp_path


def test_a_file_of_one_s_own_goes_before_a_shipped_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits-demo").write_text(SMALL)
    assert load_study("digits-demo").study == "small"


def test_every_shown_metric_can_be_an_objective():
    assert {"accuracy", "accuracy_drop", "latency_ms", "artifact_bytes", "flops"} <= METRICS.searchable
    assert not {name for name in METRICS.searchable if name.startswith("test_")}


def test_json_round_trip(tmp_path):
    spec = load_study(write(tmp_path, FULL))
    again = StudySpec.from_json(spec.to_json())
    assert again == spec
    assert again.base_folder == tmp_path
    assert again.to_json() == spec.to_json()


def test_json_of_another_schema_is_refused(make_spec):
    text = make_spec().to_json().replace('"schema": 1', '"schema": 2')
    with pytest.raises(StudyFileError, match=r"^database: schema: must be 1, not 2$"):
        StudySpec.from_json(text)


def test_replaced_changes_what_is_given_and_keeps_the_rest(make_spec):
    spec = make_spec(seed=1, workers=1)
    changed = spec.replaced(trials=99, workers=0, timeout_s=2.5)
    assert (changed.budget.trials, changed.budget.timeout_s, changed.workers, changed.seed) == (99, 2.5, 0, 1)
    assert changed.base_folder == spec.base_folder
    assert spec.budget.trials == 10
    assert spec.replaced() == spec


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ({"trials": -3}, "command line: budget.trials: must be at least 1, not -3"),
        ({"timeout_s": 0.0}, "command line: budget.timeout_s: must be > 0, not 0.0"),
        ({"workers": -1}, "command line: workers: must be a whole number from 0 to 1e+09, or auto, not -1"),
        ({"seed": 2**32}, "command line: seed: must be < 4.29497e+09, not 4294967296"),
    ],
)
def test_overrides_are_held_to_the_same_rules(make_spec, override, line):
    with pytest.raises(StudyFileError) as caught:
        make_spec().replaced(**override)
    assert str(caught.value) == line


def test_workers_budget_and_sampler_may_change(make_spec):
    changed = make_spec(workers=3, budget={"timeout_s": 9}, sampler="random")
    assert incompatible_changes(make_spec(), changed) == []


@pytest.mark.parametrize(
    ("change", "keys"),
    [
        ({"workload": "torchvision:resnet18"}, ["workload"]),
        ({"workload_options": {"fold": 1}}, ["workload_options"]),
        ({"target": "gpu"}, ["target"]),
        ({"objectives": ["latency_ms", "accuracy_drop"]}, ["objectives"]),
        ({"constraints": ["flops < 3"]}, ["constraints"]),
        ({"seed": 5}, ["seed"]),
        ({"space": {"weight_bits": [8, 32], "keep": ["fc"]}}, ["space.keep", "space.weight_bits"]),
        ({"recovery": {"alpha": 0.1}, "target": "gpu"}, ["target", "recovery.alpha"]),
    ],
)
def test_what_a_trial_means_may_not_change(make_spec, change, keys):
    assert incompatible_changes(make_spec(), make_spec(**change)) == keys


@pytest.mark.parametrize(
    ("text", "value", "violation"),
    [
        ("accuracy_drop <= 0.5", 0.75, 0.25),
        ("accuracy_drop <= 0.5", 0.5, 0.0),
        ("accuracy_drop <= 0.5", -0.25, -0.75),
        ("accuracy >= 0.5", 0.25, 0.25),
        ("accuracy >= 0.5", 1.0, -0.5),
        ("artifact_bytes < 200000", 200001, 1.0),
        ("artifact_bytes<2e5", 199999, -1.0),
        ("speedup > 2", 2.5, -0.5),
    ],
)
def test_violation_is_the_excess_in_the_metric_s_unit(text, value, violation):
    assert Constraint.parse(text, METRICS.searchable).violation(value) == violation


@pytest.mark.parametrize("text", ["speedup > 2", "artifact_bytes < 200000", "accuracy_drop < 0"])
def test_a_strict_constraint_is_violated_at_its_bound(text):
    constraint = Constraint.parse(text, METRICS.searchable)
    assert constraint.violation(constraint.bound) > 0


@pytest.mark.parametrize("op", ["<=", ">="])
@pytest.mark.parametrize(
    ("metric", "bound", "value"),
    [("accuracy_drop", 0.05, 0.9 - 0.85), ("accuracy", 0.3, 0.1 + 0.2), ("artifact_bytes", 2e8, 2e8 + 1e-6)],
)
def test_a_value_that_is_the_bound_but_for_rounding_keeps_it(metric, bound, value, op):
    assert value != bound
    assert Constraint(metric, op, bound).violation(value) == 0.0
    assert Constraint(metric, op[0], bound).violation(value) > 0
    assert Constraint(metric, "<=", bound).violation(bound + max(1, bound) * 1e-9) > 0


def test_nan_satisfies_no_constraint():
    with pytest.raises(ValueError, match="accuracy_drop is NaN"):
        Constraint("accuracy_drop", "<=", 0.5).violation(float("nan"))


@pytest.mark.parametrize(
    "text", ["accuracy_drop <= 0.05", "artifact_bytes < 200000", "flops >= 1e+20", "speedup > -0.1"]
)
def test_a_constraint_reads_back_as_written(text):
    constraint = Constraint.parse(text, METRICS.searchable)
    assert str(constraint) == text
    assert Constraint.parse(str(constraint), METRICS.searchable) == constraint


def test_the_studies_need_neither_torch_nor_optuna_nor_ray():
    modules = [
        "study_file.spec",
        "store.store",
        "store.records",
        "analysis.front",
        "analysis.selection",
        "reports.front_table",
    ]
    program = (
        f"import sys; {'; '.join(f'import slimfront.studies.{m}' for m in modules)};"
        "print(sorted({'torch', 'optuna', 'ray', 'pandas', 'alembic'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert run.stdout.strip() == "[]"
