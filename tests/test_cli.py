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
from pathlib import Path

import pytest
import yaml
from slimfront.cli import main
from slimfront.studies.records import INTERRUPTED
from slimfront.studies.store import Store

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
    assert len(problem) == 1
    assert printed.splitlines()[-1] == problem[0]
    assert GIVEN in problem[0]
    assert re.search(key, problem[0])
    assert re.search(says, problem[0])
    assert not list(tmp_path.glob("*.db"))  # nothing half-written


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


@pytest.fixture
def study(tmp_path: Path) -> Callable[..., Path]:
    def write(**changes: object) -> Path:
        (tmp_path / GIVEN).write_text(yaml.safe_dump({**GOOD, **changes}))
        return tmp_path

    return write


def rows(folder: Path, query: str) -> list[tuple]:
    with sqlite3.connect(folder / "slimfront.db") as connection:
        return connection.execute(query).fetchall()


@pytest.mark.slow
def test_a_search_over_ray_and_postgresql_from_file_to_front_and_export(
    study: Callable[..., Path], postgresql_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLIMFRONT_STORAGE", postgresql_url)
    folder = study(workers=2, budget={"trials": 6})
    result = slimfront("search", GIVEN, cwd=folder)
    assert result.returncode == 0, result.stderr
    assert "slimfront export tiny --to DIR" in result.stdout
    assert not (folder / "slimfront.db").exists()
    with Store(postgresql_url) as store:
        assert [trial.state for trial in store.trials("tiny")] == ["complete"] * 6
    document = json.loads(slimfront("front", "tiny", "--format", "json", cwd=folder).stdout)
    assert document["study"] == "tiny"
    assert [objective["name"] for objective in document["objectives"]] == ["accuracy_drop", "latency_ms"]
    names = {"accuracy", "accuracy_drop", "flops", "bops", "parameters", "artifact_bytes", "latency_ms", "speedup"}
    assert names <= set(document["baseline"]["measurements"])
    for point in document["points"]:
        assert names <= set(point["measurements"])
        assert set(point["measurements"]["speedup"]) == {"value", "low", "high", "unit"}
        assert set(point["values"]) == {"accuracy_drop", "latency_ms"}
    trial = str(document["points"][0]["trial"])
    assert slimfront("studies", cwd=folder).stdout.count("tiny") >= 1
    assert "complete" in slimfront("status", "tiny", cwd=folder).stdout
    assert "speedup" in slimfront("show", "tiny", trial, cwd=folder).stdout
    audited = json.loads(slimfront("audit", "tiny", "--format", "json", "--plot", "audit.html", cwd=folder).stdout)
    assert {found["proxy"]: found["n"] for found in audited["proxies"]}["bops"] == 6
    assert "plotly" in (folder / "audit.html").read_text()
    exported = slimfront("export", "tiny", "--pick", "fastest", "--to", "bundle", cwd=folder)
    assert exported.returncode == 0, exported.stderr
    assert {"policy.json", "model.onnx", "weights.safetensors", "card.json", "card.md"} <= set(
        os.listdir(folder / "bundle")
    )
    unknown = slimfront("front", "tinny", cwd=folder)
    assert unknown.returncode == 2
    assert "tiny" in unknown.stderr


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
def test_ctrl_c_loses_nothing_and_the_same_command_goes_on(workers: int, study: Callable[..., Path]) -> None:
    space = {"weight_bits": [4, 8, 32], "activation_bits": [8, 32], "channel_sparsity": [0, 0.5]}
    folder = study(workers=workers, budget={"trials": 60}, space=space)
    process = start_and_wait(folder, finished=2)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the whole group
    output = output_at_end(process)
    assert process.returncode == 130, output
    assert "the same command goes on" in output
    assert "Traceback" not in output
    finished = rows(folder, "select number, state from slimfront_trial where state = 'complete'")
    assert len(finished) >= 2
    assert rows(folder, "select count(*) from slimfront_trial where state = 'running'") == [(0,)]
    assert rows(folder, "select count(*) from trials where state = 'RUNNING'") == [(0,)]
    interrupted = rows(folder, f"select count(*) from slimfront_trial where reason = '{INTERRUPTED}'")[0][0]
    total = len(finished) + 2
    result = slimfront("search", GIVEN, "--trials", str(total), cwd=folder)
    assert result.returncode == 0, result.stderr
    complete = rows(folder, "select number, state from slimfront_trial where state = 'complete'")
    assert set(finished) < set(complete)
    assert len(complete) == total
    # What was interrupted waits behind the anchors, or was tried again already. Ctrl-C between two trials interrupts none.
    retried = rows(folder, "select count(*) from trial_user_attributes where \"key\" = 'retry_of'")[0][0]
    assert retried >= min(interrupted, 1)


@pytest.mark.slow
def test_a_killed_driver_leaves_nothing_running_for_its_successor(study: Callable[..., Path]) -> None:
    folder = study(budget={"trials": 60}, space={"weight_bits": [4, 8, 32], "activation_bits": [8, 32]})
    process = start_and_wait(folder, finished=1)
    process.kill()
    process.communicate()
    finished = rows(folder, "select count(*) from slimfront_trial where state = 'complete'")[0][0]
    result = slimfront("search", GIVEN, "--trials", str(finished + 1), cwd=folder)
    assert result.returncode == 0, result.stderr
    assert rows(folder, "select count(*) from slimfront_trial where state = 'running'") == [(0,)]
    assert rows(folder, "select count(*) from trials where state = 'RUNNING'") == [(0,)]
