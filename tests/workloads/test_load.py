"""Workloads loaded by reference, and the one-line errors of references that lead nowhere."""

import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from slimfront.core.errors import WorkloadError
from slimfront.workloads.load import builtin_workloads, load_workload, workload_fingerprint
from torch import nn
from torch.utils.data import TensorDataset

OWN = """
from helper import CLASSES
import torch
from slimfront.workloads.workload import Workload
from torch import nn
from torch.utils.data import TensorDataset

def mine(samples=2, name=""):
    data = TensorDataset(torch.zeros(samples, 4), torch.zeros(samples, dtype=torch.int64))
    import helper  # still importable while the function runs
    model = nn.Linear(4, helper.CLASSES)
    return Workload(model, data, data, data, data, torch.zeros(1, 4), name=name)

def nothing():
    pass

def asks(root):
    pass

def fails():
    raise FileNotFoundError("no images\\nin /data")

def exits():
    raise SystemExit(3)

number = 5
"""


@pytest.fixture
def folder(tmp_path, monkeypatch, request):
    """Study file's folder with a user's file in `code`, the same as a package, and files that cannot be imported."""
    code, package = tmp_path / "code", tmp_path / "own_package"
    for place in (code, package):
        place.mkdir()
        (place / "own.py").write_text(OWN.replace("helper", "slimfront_test_helper"))
    (code / "slimfront_test_helper.py").write_text("CLASSES = 3\n")
    (tmp_path / "slimfront_test_helper.py").write_text("CLASSES = 3\n")
    (code / "broken.py").write_text("def f(:\n")
    (code / "script.py").write_text("import sys\nsys.exit('usage: script.py FILE')\n")
    (code / "needs.py").write_text("import a_library_that_is_not_there\n")
    (tmp_path / "own_needs.py").write_text("import a_library_that_is_not_there\n")
    (code / "notes.txt").write_text("not Python")
    modules = dict(sys.modules)
    yield tmp_path
    for name in sys.modules.keys() - modules.keys():
        if name.startswith(("slimfront_test_helper", "own_", "slimfront_workload_")):
            del sys.modules[name]


def test_a_users_function_in_a_file_with_its_folder_importable(folder):
    path = list(sys.path)
    workload = load_workload("code/own.py:mine", {"samples": 5}, base=folder)
    assert len(workload.train) == 5
    assert workload.model.out_features == 3
    assert workload.name == "code/own.py:mine"
    assert sys.path == path


def test_an_absolute_path_needs_no_base(folder):
    assert load_workload(f"{folder}/code/own.py:mine").name == f"{folder}/code/own.py:mine"


def test_a_users_function_in_a_module(folder):
    workload = load_workload("own_package.own:mine", {"name": "my own"}, base=folder)
    assert workload.name == "my own"


def test_a_file_is_read_again_each_time(folder):
    load_workload("code/own.py:mine", base=folder)
    file = folder / "code" / "own.py"
    file.write_text(file.read_text() + "\n\ndef another():\n    return mine(samples=7)\n")
    assert len(load_workload("code/own.py:another", base=folder).train) == 7


WRONG_TURNS = {
    "unknown": (
        "digit",
        {},
        "unknown; it must be digits, digits-vit, digits-gru, digits-lstm, torchvision:NAME, timm:NAME, transformers:FOLDER, "
        "path/to/file.py:function or package.module:function",
    ),
    "no function named": ("code/own.py", {}, "unknown; it must be digits"),
    "missing file": ("code/other.py:mine", {}, "there is no file {folder}/code/other.py"),
    "no python": ("code/notes.txt:mine", {}, "{folder}/code/notes.txt must be a Python file"),
    "syntax error": ("code/broken.py:f", {}, "importing it raised SyntaxError: invalid syntax (broken.py, line 1)"),
    "a script": ("code/script.py:f", {}, "importing it raised SystemExit: usage: script.py FILE"),
    "file needs a library": (
        "code/needs.py:f",
        {},
        "importing it raised ModuleNotFoundError: No module named 'a_library_that_is_not_there'",
    ),
    "missing package": (
        "no_such_package.models:f",
        {},
        "there is no module 'no_such_package'; is its package installed?",
    ),
    "missing module": ("own_package.other:f", {}, "there is no module 'own_package.other'; is its package installed?"),
    "module needs a library": (
        "own_needs:f",
        {},
        "importing it raised ModuleNotFoundError: No module named 'a_library_that_is_not_there'",
    ),
    "missing function": ("code/own.py:mime", {}, "there is no function 'mime' in it; there is mine"),
    "far from any function": (
        "code/own.py:zzz",
        {},
        "there is no function 'zzz' in it; there is mine, nothing, asks, fails, exits",
    ),
    "no function": ("code/own.py:number", {}, "there is no function 'number' in it"),
    "unknown option": (
        "code/own.py:mine",
        {"sample": 3},
        "options do not fit: got an unexpected keyword argument 'sample'; its options are: samples, name",
    ),
    "option left out": (
        "code/own.py:asks",
        {},
        "options do not fit: missing a required argument: 'root'; its options are: root",
    ),
    "built-in's option": (
        "digits",
        {"devise": "cpu"},
        "options do not fit: got an unexpected keyword argument 'devise'; its options are: device, progress",
    ),
    "it raises": ("code/own.py:fails", {}, "it raised FileNotFoundError: no images in /data"),
    "it exits": ("code/own.py:exits", {}, "it raised SystemExit: 3"),
    "wrong type": (
        "code/own.py:nothing",
        {},
        "it must return a slimfront.Workload, not NoneType",
    ),
    "broken contract": ("code/own.py:mine", {"samples": 0}, "train is empty"),
}


@pytest.mark.parametrize(("reference", "options", "line"), WRONG_TURNS.values(), ids=WRONG_TURNS.keys())
def test_each_wrong_turn_is_one_line(folder, reference, options, line):
    path = list(sys.path)
    with pytest.raises(WorkloadError) as caught:
        load_workload(reference, options, base=folder)
    assert str(caught.value).startswith(f"workload {reference}: {line.format(folder=folder.resolve())}")
    assert "\n" not in str(caught.value)
    assert sys.path == path


def test_an_error_in_the_users_function_is_chained(folder):
    with pytest.raises(WorkloadError) as caught:
        load_workload("code/own.py:fails", base=folder)
    assert isinstance(caught.value.__cause__, FileNotFoundError)


@pytest.mark.slow
def test_digits_by_name():
    workload = load_workload("digits", {"progress": False})
    assert workload.name == "digits"
    assert workload.example_input.shape == (1, 1, 16, 16)


def test_the_names_for_messages():
    named = ["torchvision:NAME", "timm:NAME", "transformers:FOLDER"]
    assert builtin_workloads() == ["digits", "digits-vit", "digits-gru", "digits-lstm", *named]


def test_the_fingerprint_changes_with_the_weights_and_the_splits(folder):
    workload = load_workload("code/own.py:mine", base=folder)
    fingerprint = workload_fingerprint(workload)
    assert len(fingerprint) == 64
    assert workload_fingerprint(replace(workload, name="another name")) == fingerprint
    larger = TensorDataset(torch.zeros(3, 4), torch.zeros(3, dtype=torch.int64))
    assert workload_fingerprint(replace(workload, validation=larger)) != fingerprint
    nn.init.zeros_(workload.model.bias)
    assert workload_fingerprint(workload) != fingerprint


def test_importing_the_package_does_not_import_torch():
    check = "import slimfront.workloads, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0
