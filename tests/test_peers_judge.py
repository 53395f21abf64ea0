"""The judge of the comparison with other compressors agrees with itself and with figures computed by hand."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import openvino as ov
import openvino.opset13 as ops
import pytest

PEERS = Path(__file__).parents[1] / "benchmarks" / "peers"


def linear(path: Path, flipped: bool = False) -> Path:
    """The larger of a sample's two inputs is its class; the smaller where flipped."""
    inputs = ops.parameter([1, 2], np.float32)
    weight = np.eye(2, dtype=np.float32)
    product = ops.matmul(inputs, weight[::-1].copy() if flipped else weight, False, False)
    ov.save_model(ov.Model([product], [inputs]), path, compress_to_fp16=False)
    return path


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """What the judge says of the reference itself, of the opposite of it, of a file that is none, and of one that is only timed."""
    folder = tmp_path_factory.mktemp("judge")
    reference, opposite = linear(folder / "reference.xml"), linear(folder / "opposite.xml", flipped=True)
    (folder / "broken.xml").write_text("no model")
    images = np.array([[2, 1], [1, 2], [3, 1], [5, 4]], np.float32)
    np.savez(folder / "data.npz", test_x=images, test_y=np.array([0, 1, 0, 1]))
    points = [{"file": str(path)} for path in (reference, opposite, folder / "broken.xml")]
    (folder / "points.json").write_text(json.dumps([*points, {"file": str(reference), "scored": False}]))
    files = [folder / name for name in ("reference.xml", "data.npz", "points.json", "judged.json")]
    subprocess.run([sys.executable, PEERS / "judge.py", *files], check=True)
    return json.loads(files[-1].read_text()) | {"bytes": sum(f.stat().st_size for f in folder.glob("reference.*"))}


def test_a_file_against_itself_is_equally_fast_large_and_accurate(judged: dict) -> None:
    same = judged["points"][0]
    assert same["low"] < 1.15
    assert same["high"] > 0.87
    assert (same["drop"], same["size"], same["bytes"]) == (0, 1, judged["bytes"])


def test_accuracy_is_the_fraction_of_samples_classified_rightly(judged: dict) -> None:
    assert judged["reference"]["accuracy"] == 3 / 4
    assert judged["points"][1]["accuracy"] == 1 / 4
    assert judged["points"][1]["drop"] == 50


def test_a_file_that_openvino_refuses_is_a_result_too(judged: dict) -> None:
    assert judged["points"][2]["refused"]
    assert "speedup" not in judged["points"][2]


def test_what_is_only_timed_has_no_accuracy(judged: dict) -> None:
    assert "accuracy" not in judged["points"][3]
    assert judged["points"][3]["speedup"] > 0


def test_the_judge_imports_nothing_of_the_contestants() -> None:
    code = f"import sys; sys.path.insert(0, {str(PEERS)!r}); import judge; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert not {"slimfront", "torch", "nncf", "onnxruntime", "optuna"} & set(loaded)
