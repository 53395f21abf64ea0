"""The commands as a user types them: real processes, real files, exit codes and what is printed."""

import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from slimfront import api
from slimfront.cli import main, options
from slimfront.cli.options import json_text
from slimfront.core.console import UNCUT
from slimfront.core.measurement import Measurement
from slimfront.spaces.policies.policy import LayerPolicy, Policy
from slimfront.studies.bundles.verify import Check
from slimfront.studies.reports.json_documents import checks_document
from slimfront.studies.store.records import INTERRUPTED, ORPHANED
from slimfront.studies.store.store import Store
from slimfront.studies.study_file.load import load_study, shipped_studies

TINY = Path(__file__).parent / "search" / "tiny_workload.py"
GOOD = {
    "study": "tiny",
    "workload": f"{TINY}:workload",
    "target": "cpu-openvino",
    "objectives": ["accuracy_drop", "latency_ms"],
    "budget": {"trials": 4},
    "workers": 0,
    "space": {"weight_bits": [8, 32], "activation_bits": [8, 32]},
}
GIVEN = "study.yaml"
COMPLETE = "select number, state from slimfront_trial where state = 'complete'"
SAVED = ["accuracy_drop", "latency_ms", "packed_bytes"]
"""Objectives of which fewer bits always make one better, so that any search finds something."""


def slimfront(*arguments: str, cwd: Path, timeout: float = 300, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "slimfront", *arguments],
        cwd=cwd,
        timeout=timeout,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "COLUMNS": "120", **environment},
    )


def without(key: str) -> dict:
    return {name: value for name, value in GOOD.items() if name != key}


BAD: dict[str, tuple[object, str, str]] = {
    # kind: (study file, key it names, what it says)
    "unknown key": ({**GOOD, "trails": 3}, "trails", "unknown"),
    "missing key": (without("target"), "target", "is missing"),
    "wrong type": ({**GOOD, "workers": "two"}, "workers", "number|integer"),
    "fractional workers": ({**GOOD, "workers": 1.5}, "workers", "number|integer"),
    "impossible bits": ({**GOOD, "space": {"weight_bits": [7, 8]}}, r"space\.weight_bits\.0", "7 is not one of"),
    "bfloat16 activations alone": ({**GOOD, "space": {"activation_bits": [16, 32]}}, "space", "add it to weight_bits"),
    "empty choices": ({**GOOD, "space": {"weight_bits": []}}, r"space\.weight_bits", "at least 1|empty"),
    "repeated choice": ({**GOOD, "space": {"weight_bits": [8, 8]}}, r"space\.weight_bits", "twice"),
    "empty space": ({**GOOD, "space": {"weight_bits": [8]}}, "space", "empty"),
    "unknown granularity": (
        {**GOOD, "space": {"weight_bits": [8, 32], "granularity": "row"}},
        r"space\.granularity",
        "layer",
    ),
    "sparsity of one": (
        {**GOOD, "space": {"channel_sparsity": [0, 1.0]}},
        r"space\.channel_sparsity\.1",
        "must be < 1",
    ),
    "width of zero": ({**GOOD, "space": {"width": [0, 1.0]}}, r"space\.width\.0", "must be > 0"),
    "negative trials": ({**GOOD, "budget": {"trials": -3}}, r"budget\.trials", "must be at least 1"),
    "no budget": ({**GOOD, "budget": {}}, "budget", "trials"),
    "negative seed": ({**GOOD, "seed": -1}, "seed", "must be at least 0"),
    "one objective": ({**GOOD, "objectives": ["latency_ms"]}, "objectives", "2 to 4"),
    "unknown objective": ({**GOOD, "objectives": ["latency_ms", "acuracy"]}, r"objectives\.1", "accuracy"),
    "malformed constraint": ({**GOOD, "constraints": ["accuracy_drop 0.1"]}, r"constraints\.0", "NAME OP NUMBER"),
    "unknown constraint": ({**GOOD, "constraints": ["joy <= 1"]}, r"constraints\.0", "joy"),
    "unknown sampler": ({**GOOD, "sampler": "magic"}, "sampler", "tpe"),
    "unknown target": ({**GOOD, "target": "gpu-of-dreams"}, "target", "shipped card"),
    "missing workload file": ({**GOOD, "workload": "nowhere.py:model"}, "workload", "nowhere.py"),
    "missing workload function": ({**GOOD, "workload": f"{TINY}:modell"}, "workload", "modell"),
    "unknown workload": ({**GOOD, "workload": "digit"}, "workload", "digits"),
    "unknown torchvision model": ({**GOOD, "workload": "torchvision:resnet19"}, "workload", "resnet18"),
    "unknown workload option": ({**GOOD, "workload_options": {"depth": 3}}, "workload", "depth"),
    "bad study name": ({**GOOD, "study": "a b"}, "study", "may only hold"),
    "not a mapping": (["study"], "", "mapping"),
    "not YAML": ("study: [", "", "YAML|expected"),
    "repeated key": ("study: a\nstudy: b\n", "study", "twice"),
}


@pytest.mark.parametrize(("document", "key", "says"), BAD.values(), ids=BAD)
def test_a_bad_study_file_is_one_line_naming_file_and_key(
    document: object, key: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    text = document if isinstance(document, str) else yaml.safe_dump(document)
    (tmp_path / GIVEN).write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["slimfront", "search", GIVEN])
    with pytest.raises(SystemExit) as ended:
        main()
    printed = capfd.readouterr().err
    problem = [line for line in printed.splitlines() if line.startswith("slimfront: ")]
    assert ended.value.code == 2
    assert printed.splitlines() == problem  # nothing before it
    assert len(problem) == 1
    assert GIVEN in problem[0]
    assert re.search(key, problem[0])
    assert re.search(says, problem[0])
    assert not list(tmp_path.glob("*.db"))  # nothing half-written
    assert typed("inspect", GIVEN, monkeypatch=monkeypatch, capfd=capfd) == (2, "", printed)  # the same line


def test_a_missing_study_file_lists_the_shipped_ones(tmp_path: Path) -> None:
    result = slimfront("search", "nowhere.yaml", cwd=tmp_path)
    assert result.returncode == 2
    assert result.stderr.startswith("slimfront: nowhere.yaml: ")
    assert "digits-demo" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("front", "tiny"), "no such database"),
        (("status", "tiny", "--storage", "mysql://x/y"), "SQLite or PostgreSQL"),
        (("search", "digits-demo", "--trials", "0"), "budget.trials"),
        (("export", "tiny", "--to", "x", "--trial", "1", "--pick", "knee"), "not both"),
    ],
    ids=["no database", "another database", "no trials", "two ways to pick"],
)
def test_a_wrong_turn_is_one_line(arguments: tuple[str, ...], says: str, tmp_path: Path) -> None:
    result = slimfront(*arguments, cwd=tmp_path)
    assert result.returncode == 2
    assert says in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())


def typed(*arguments: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of a command run in this process."""
    monkeypatch.setattr(sys, "argv", ["slimfront", *arguments])
    code = 0
    try:
        main()
    except SystemExit as ended:
        code = ended.code or 0
    return code, *capfd.readouterr()


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("show X abc", "TRIAL must be a whole number, not 'abc'; `slimfront show --help` explains it"),
        ("show X", "TRIAL is missing; `slimfront show --help` explains it"),
        ("front", "NAME is missing; `slimfront front --help` explains it"),
        ("export X", "--to is missing; `slimfront export --help` explains it"),
        ("search x --trials 1.5", "--trials must be a whole number, not '1.5'; `slimfront search --help` explains it"),
        ("search x --timeout soon", "--timeout must be a number, not 'soon'; `slimfront search --help` explains it"),
        ("search x --trials", "--trials needs a value; `slimfront --help` explains it"),
        ("dashboard --port 0", "--port must be between 1 and 65535, not 0; `slimfront dashboard --help` explains it"),
        ("show X 1 2", "'2' is one argument too many; `slimfront show --help` explains it"),
        ("serch x", "there is no command 'serch'; did you mean search?; `slimfront --help` explains it"),
        ("search x --trails 3", "there is no option --trails; did you mean --trials?; `slimfront search --help` ex"),
        (
            "export X --to a --pick fastst",
            "--pick has no choice 'fastst'; did you mean fastest?; `slimfront export --help` explains it",
        ),
        (
            "front X --format xml",
            "--format has no choice 'xml'; known are csv, json, table; `slimfront front --help` explains it",
        ),
        ("search digit-demo", "digit-demo: no such file, and no shipped study; did you mean digits-demo?"),
        (
            "inspect digit-demo",
            "'digit-demo' is none of a study file, the name of a study or workload, path/to/file.py",
        ),
        ("profile cpu-opnvino --show", "target 'cpu-opnvino' is neither a shipped card nor a file; did you mean cpu"),
        (
            "front X --storage me@host/x",
            "storage 'me@host/x' is not a database URL; write a file's name, sqlite:///slimfront.db or",
        ),
    ],
)
def test_what_is_typed_wrong_is_one_line(
    line: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    code, printed, problem = typed(*line.split(), monkeypatch=monkeypatch, capfd=capfd)
    assert (code, printed) == (2, "")
    assert problem.startswith(f"slimfront: {says}")
    assert problem.count("\n") == 1


def test_without_a_command_there_is_help_and_its_version_names_what_it_runs_on(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    code, help_, problem = typed(monkeypatch=monkeypatch, capfd=capfd)
    assert (code, problem) == (2, "")
    assert "profiles" in help_
    code, printed, problem = typed("--version", monkeypatch=monkeypatch, capfd=capfd)
    assert (code, problem) == (0, "")
    assert printed.startswith(f"slimfront {metadata.version('slimfront')} (Python 3.")
    assert f"ray {metadata.version('ray')}" in printed


@pytest.fixture
def measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose slimfront.db holds the study "tiny": trials 0 and 1 complete, 0 on the front, 2 failed."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / GIVEN).write_text(yaml.safe_dump(GOOD))
    figures = [
        Measurement("accuracy_drop", 0.01, 0.005, 0.02, "fraction", 360, "newcombe paired"),
        Measurement("latency_ms", 1.5, 1.4, 1.6, "ms", 240, "paired-median x quiet reference"),
        Measurement("latency_p99_ms", 1.9, 1.8, 2.1, "ms", 10_000, "single runs of one timing"),
        Measurement.exact("flops", 12_345, "fvcore"),
    ]
    policy = Policy(channels={"stem": 0.5}, layers={"stem": LayerPolicy(8, 8)})
    with Store("slimfront.db") as store:
        store.create_study(load_study(GIVEN), "fingerprint", {}, {})
        store.set_baseline("tiny", figures, "cpu-openvino")
        for number in range(3):
            store.start_trial("tiny", number, policy)
            store.add_measurements("tiny", number, figures, 0, "cpu-openvino")
        for number, state in enumerate(("complete", "complete", "failed")):
            store.finish_trial("tiny", number, state, "ValueError: [3, 8]" if state == "failed" else None)
        store.save_front("tiny", [0], hypervolume=0.5)
    return tmp_path


def test_every_document_is_json_alone_and_its_keys_are_on_the_page(
    measured: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    page = (Path(__file__).parent.parent / "docs" / "reference" / "json.md").read_text()
    for line in ("studies", "status tiny", "show tiny 1", "front tiny", "profiles", "profile cpu-torch --show"):
        code, printed, problem = typed(*line.split(), "--format", "json", monkeypatch=monkeypatch, capfd=capfd)
        assert (code, problem) == (0, ""), line
        document = json.loads(printed)
        assert f"| `{line.split()[0]}" in page
        missing = {key for key in document if not re.search(rf"[`\"]{key}[`\"]", page)}
        assert not missing - {"note", "options", "activation_bits", "latency_table", "predict", "remote", "shapes"}, (
            line
        )


def test_a_command_prints_what_its_pair_in_python_returns(
    measured: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(options.out, "_width", UNCUT)  # as to a pipe, also where xdist has set COLUMNS
    study = api.Study.open(name="tiny")
    pairs = {
        "studies": api.studies(),
        "show tiny 1": study.show(1),
        "front tiny": study.show_front(),
        "profiles": api.profiles(),
        "profile cpu-torch --show": api.profile("cpu-torch", measure=False),
    }
    for line, result in pairs.items():
        printed = typed(*line.split(), "--format", "json", monkeypatch=monkeypatch, capfd=capfd)[1]
        assert json.loads(printed) == json.loads(json_text(result.to_dict())), line
        table = typed(*line.split(), monkeypatch=monkeypatch, capfd=capfd)[1]
        assert "".join(table.split()) == "".join(str(result).split()), line
        bundle = result._repr_mimebundle_((), ())
        assert "text/html" in bundle, line
    typed("front", "tiny", "--out", "front.txt", monkeypatch=monkeypatch, capfd=capfd)
    assert (measured / "front.txt").read_text() == str(study.show_front())
    typed("front", "tiny", "--format", "csv", "--out", "front.csv", monkeypatch=monkeypatch, capfd=capfd)
    assert (measured / "front.csv").read_text() == study.front().to_csv(index=False)


def test_documents_say_what_the_tables_say(
    measured: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    def document(*words: str) -> dict:
        return json.loads(typed(*words, "--format", "json", monkeypatch=monkeypatch, capfd=capfd)[1])

    [study] = document("studies")["studies"]
    assert (study["study"], study["trials"], study["trials_wanted"], study["front_points"]) == ("tiny", 3, 4, 1)
    status = document("status", "tiny")
    assert status["trials_by_state"] == {
        "running": 0, "complete": 2, "infeasible": 0, "pruned": 0, "stopped": 0, "failed": 1, "interrupted": 0,
    }  # fmt: skip
    assert status["reasons"] == [{"trials": 1, "state": "failed", "reason": "ValueError: [3, 8]"}]
    trial = document("show", "tiny", "2")
    assert (trial["state"], trial["reason"], trial["policy"]["channels"]) == (
        "failed",
        "ValueError: [3, 8]",
        {"stem": 0.5},
    )
    latency = next(m for m in trial["measurements"] if m["name"] == "latency_ms")
    assert [latency[key] for key in ("value", "low", "high", "unit", "n")] == [1.5, 1.4, 1.6, "ms", 240]
    assert not latency["replaced"]
    assert [point["trial"] for point in document("front", "tiny")["points"]] == [0]


def test_a_number_that_is_not_finite_is_null() -> None:
    assert json.loads(json_text({"low": float("nan"), "parts": [float("inf"), 1.5]})) == {
        "low": None,
        "parts": [None, 1.5],
    }


def test_a_bundle_of_which_a_claim_could_not_be_checked_holds() -> None:
    checks = [Check("size", "10", "10", "none", True), Check("speedup", "2.000", "not measured", "", None)]
    document = checks_document(Path("bundle"), checks)
    assert (document["holds"], [check["holds"] for check in document["checks"]]) == (True, [True, None])
    broken = checks_document(Path("bundle"), [*checks, Check("accuracy", "0.9", "0.1", "0.005", False)])
    assert broken["holds"] is False
    assert broken["checks"][2]["found"] == "0.1"


def test_what_is_piped_is_not_cut(measured: Path) -> None:
    piped = {"COLUMNS": ""}  # as good as not set: 80 where there is a terminal
    shown = slimfront("show", "tiny", "1", cwd=measured, **piped).stdout
    for name in ("accuracy_drop", "latency_ms", "latency_p99_ms"):
        assert any(line.startswith(f"{name} ") for line in shown.splitlines())
    assert "paired-median x quiet reference" in shown
    assert "…" not in shown


@pytest.mark.parametrize("format", ["table", "json", "csv"])
def test_a_front_is_written_to_a_file_as_it_is_printed(
    format: str, measured: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    printed = typed("front", "tiny", "--format", format, monkeypatch=monkeypatch, capfd=capfd)[1]
    words = ("front", "tiny", "--format", format, "--out", "front.txt")
    assert typed(*words, monkeypatch=monkeypatch, capfd=capfd) == (0, "", "")
    written = (measured / "front.txt").read_text(encoding="utf-8")
    assert written.split() == printed.split()
    assert "1.5" in written


def test_a_narrow_terminal_breaks_no_name(measured: Path) -> None:
    for columns, methods in (("80", True), ("70", False)):
        shown = slimfront("show", "tiny", "1", cwd=measured, COLUMNS=columns).stdout
        assert any(line.split()[:2] == ["latency_p99_ms", "1.900"] for line in shown.splitlines())
        assert ("timing" in shown, "a wider terminal" in shown) == (methods, not methods)
        assert "…" not in shown


@pytest.mark.parametrize("line", ["front tiny", "status tiny"])
def test_a_terminal_that_knows_only_ascii_gets_plain_characters(line: str, measured: Path) -> None:
    shown = slimfront(*line.split(), cwd=measured, PYTHONIOENCODING="ascii")
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.isascii()
    assert "\\u" not in shown.stdout


def test_a_shell_completes_commands_and_names(measured: Path) -> None:
    script = slimfront("--show-completion", "bash", cwd=measured).stdout
    (measured / "completion.bash").write_text(script)
    (measured / "slimfront").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m slimfront "$@"\n')
    (measured / "slimfront").chmod(0o755)
    asked = ["stat", "search digits-", "front ", "profile cpu-t", "export tiny --pick f"]
    lines = "\n".join(f"ask slimfront {words}" + (" ''" if words.endswith(" ") else "") for words in asked)
    (measured / "ask.bash").write_text(
        "PATH=$PWD:$PATH; source completion.bash\n"
        'ask() { COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _slimfront_completion slimfront; echo ${COMPREPLY[*]}; }\n'
        + lines
    )
    printed = subprocess.run(["bash", "ask.bash"], cwd=measured, capture_output=True, text=True, check=True).stdout
    assert printed.splitlines() == [
        "status",
        " ".join(shipped_studies()),
        "tiny",
        "cpu-torch cpu-torch-compile",
        "fastest",
    ]


def test_profiles_are_listed_without_torch_or_a_runtime_imported(tmp_path: Path) -> None:
    code = (
        "import sys; sys.argv = ['slimfront', 'profiles']; import slimfront.cli; slimfront.cli.main(); "
        "print([m for m in ('torch', 'openvino', 'onnxruntime', 'ray', 'optuna') if m in sys.modules])"
    )
    printed = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert printed.stdout.splitlines()[-1] == "[]"
    assert "cpu-openvino" in printed.stdout


@pytest.fixture
def study(tmp_path: Path) -> Callable[..., Path]:
    def write(**changes: object) -> Path:
        (tmp_path / GIVEN).write_text(yaml.safe_dump({**GOOD, "objectives": SAVED, **changes}))
        return tmp_path

    return write


def rows(folder: Path, query: str, *values: str) -> list[tuple]:
    with sqlite3.connect(folder / "slimfront.db") as connection:
        return connection.execute(query, values).fetchall()


@pytest.mark.slow
def test_a_search_over_ray_and_postgresql_from_file_to_front_and_export(
    study: Callable[..., Path], postgresql_url: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    """The search and the export are processes of their own; the other commands read what the search has stored."""
    monkeypatch.setenv("SLIMFRONT_STORAGE", postgresql_url)
    folder = study(workers=2, budget={"trials": 4})
    monkeypatch.chdir(folder)

    def printed(*arguments: str) -> str:
        return typed(*arguments, monkeypatch=monkeypatch, capfd=capfd)[1]

    result = slimfront("search", GIVEN, cwd=folder)
    assert result.returncode == 0, result.stderr
    assert "slimfront export tiny --to DIR" in result.stdout
    assert not (folder / "slimfront.db").exists()
    with Store(postgresql_url) as store:
        assert [trial.state for trial in store.trials("tiny")] == ["complete"] * 4
    document = json.loads(printed("front", "tiny", "--format", "json"))
    assert document["study"] == "tiny"
    assert [objective["name"] for objective in document["objectives"]] == SAVED
    names = {"accuracy", "accuracy_drop", "flops", "bops", "parameters", "artifact_bytes", "latency_ms", "speedup"}
    assert names <= set(document["baseline"]["measurements"])
    for point in document["points"]:
        assert names <= set(point["measurements"])
        assert set(point["measurements"]["speedup"]) == {"value", "low", "high", "unit"}
        assert set(point["values"]) == set(SAVED)
    trial = str(document["points"][0]["trial"])
    assert "tiny" in printed("studies")
    assert "complete" in printed("status", "tiny")
    assert "speedup" in printed("show", "tiny", trial)
    audited = json.loads(printed("audit", "tiny", "--format", "json", "--plot", "audit.html"))
    assert {found["proxy"]: found["n"] for found in audited["proxies"]}["bops"] == 4
    assert "plotly" in (folder / "audit.html").read_text()
    exported = slimfront("export", "tiny", "--pick", "fastest", "--to", "bundle", "--format", "json", cwd=folder)
    assert exported.returncode == 0, exported.stderr
    assert set(json.loads(exported.stdout)["files"]) == set(os.listdir(folder / "bundle"))
    assert {"policy.json", "model.onnx", "weights.safetensors", "card.json", "card.md"} <= set(
        os.listdir(folder / "bundle")
    )
    code, _, problem = typed("front", "tinny", monkeypatch=monkeypatch, capfd=capfd)
    assert code == 2
    assert "tiny" in problem


def start_and_wait(folder: Path, finished: int) -> subprocess.Popen[str]:
    """A search with so many trials finished and another one running."""
    process = subprocess.Popen(
        [sys.executable, "-X", "faulthandler", "-m", "slimfront", "search", GIVEN],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline and process.poll() is None:
        if (folder / "slimfront.db").exists():
            try:
                states = dict(rows(folder, "select state, count(*) from slimfront_trial group by state"))
                if states.get("complete", 0) >= finished and "running" in states:
                    return process
            except sqlite3.OperationalError:
                pass  # its tables are not there yet
        time.sleep(0.05)
    process.kill()
    raise AssertionError(f"{finished} trials never finished: {process.communicate()[0]}")


def output_at_end(process: subprocess.Popen[str]) -> str:
    """What it printed; with where it is, if it does not end within a minute."""
    try:
        return process.communicate(timeout=60)[0]
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGABRT)
        return process.communicate()[0]


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_a_killed_driver_and_ctrl_c_lose_nothing_and_the_same_command_goes_on(
    workers: int, study: Callable[..., Path]
) -> None:
    """Without Ray the driver is killed first, and leaves nothing running."""
    space = {"weight_bits": [4, 8, 32], "activation_bits": [8, 32], "channel_sparsity": [0, 0.5]}
    folder = study(workers=workers, budget={"trials": 60}, space=space)
    before, orphaned = [], 0
    if not workers:
        killed = start_and_wait(folder, finished=1)
        killed.kill()
        killed.communicate()
        before = rows(folder, COMPLETE)
        orphaned = rows(folder, "select count(*) from slimfront_trial where state = 'running'")[0][0]
    process = start_and_wait(folder, finished=max(2, len(before) + 1))
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the whole group
    output = output_at_end(process)
    assert process.returncode == 130, output
    assert "run the same command to continue" in output
    assert "Traceback" not in output
    finished = rows(folder, COMPLETE)
    assert len(finished) >= 2
    assert set(before) < set(finished)
    assert rows(folder, "select count(*) from slimfront_trial where reason = ?", ORPHANED) == [(orphaned,)]
    assert_none_runs(folder)
    interrupted = rows(folder, f"select count(*) from slimfront_trial where reason = '{INTERRUPTED}'")[0][0]
    total = len(finished) + 2
    result = slimfront("search", GIVEN, "--trials", str(total), cwd=folder)
    assert result.returncode == 0, result.stderr
    complete = rows(folder, COMPLETE)
    assert set(finished) < set(complete)
    assert len(complete) == total
    assert_none_runs(folder)
    # What was interrupted waits behind the anchors, or was tried again already. Ctrl-C between two trials interrupts none.
    retried = rows(folder, "select count(*) from trial_user_attributes where \"key\" = 'retry_of'")[0][0]
    assert retried >= min(interrupted + orphaned, 1)


def assert_none_runs(folder: Path) -> None:
    assert rows(folder, "select count(*) from slimfront_trial where state = 'running'") == [(0,)]
    assert rows(folder, "select count(*) from trials where state = 'RUNNING'") == [(0,)]
