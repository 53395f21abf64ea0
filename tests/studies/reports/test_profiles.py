"""Device cards as the database keeps them and the terminal shows them."""

from __future__ import annotations

import io

import pytest
from rich.console import Console, RenderableType
from slimfront.cli import app
from slimfront.core.errors import StoreError, TargetError
from slimfront.hardware_profiles.cards.device_card import DeviceCard, Kernel, Throughput
from slimfront.hardware_profiles.cards.target import card_text, load_target
from slimfront.hardware_profiles.profiling import profile
from slimfront.hardware_profiles.profiling.fingerprint import machine, versions
from slimfront.hardware_profiles.runtimes.base import get_runtime
from slimfront.studies.reports import profiles
from slimfront.studies.reports.profiles import (
    known_target,
    known_targets,
    measure_target,
    profiles_table,
    target_report,
)
from typer.testing import CliRunner

KERNELS = [
    Kernel(operation="conv2d", weight_bits=w, activation_bits=a, executed=e)
    for w, a, e in ((8, 8, "i8"), (4, 8, "i8"), (8, 32, "f32"))
]
SPEED = Throughput(operation="conv2d", weight_bits=8, activation_bits=8, gmac_per_s=99.5, low=90, high=110, noisy=True)


def text(shown: RenderableType) -> str:
    console = Console(width=140, file=io.StringIO())
    console.print(shown)
    return console.file.getvalue()


@pytest.fixture
def storage(tmp_path, monkeypatch) -> str:
    def measure(target, progress):
        progress("memory", 0, 1)
        return DeviceCard(
            measured_at="2026-01-02T03:04:05Z", machine=machine(), versions=versions(get_runtime(target.runtime)),
            memory_gb_per_s=12.34, dispatch_us=17, kernels=KERNELS, throughput=[SPEED], reference_ms={"resnet18": 5.5},
            left_out=["resnet18 speed"],
        )  # fmt: skip

    monkeypatch.setattr(profile, "profile_target", measure)
    return f"sqlite:///{tmp_path}/cards.db"


def test_before_anything_was_measured_the_shipped_cards_are_templates(storage):
    assert text(profiles_table(known_targets(storage).values())).count("not measured") >= 2
    assert "the card is a template" in text(target_report(known_target("cpu-openvino", storage)))


def test_a_measured_card_is_kept_and_shown(storage):
    measured = measure_target("cpu-onnxruntime", storage, Console(quiet=True))
    assert measured.measured.memory_gb_per_s == 12.34
    shown = text(target_report(known_target("cpu-onnxruntime", storage)))
    for part in (
        "12.3 GB/s",
        "17 us",
        "5.50 ms",
        "99.5~",
        "90.0 to 110.0",
        "8/8 4/8",
        "f32 (storage only)",
        "2026-01-02",
    ):
        assert part in shown
    row = next(
        line for line in text(profiles_table(known_targets(storage).values())).splitlines() if "cpu-onnxruntime" in line
    )
    assert "yes" in row
    assert "not measured" not in row


def test_a_card_of_another_machine_is_shown_as_such(storage, monkeypatch):
    measure_target("cpu-onnxruntime", storage, Console(quiet=True))
    monkeypatch.setattr("slimfront.studies.reports.profiles.machine", lambda: {**machine(), "cpu": "Another CPU"})
    assert ", here Another CPU" in text(target_report(known_target("cpu-onnxruntime", storage)))


def test_a_card_whose_runtime_is_missing_here_is_shown_with_the_reason(storage, monkeypatch):
    measure_target("cpu-onnxruntime", storage, Console(quiet=True))

    def missing(name: str) -> None:
        raise TargetError(f"runtime {name!r} is not installed")

    monkeypatch.setattr(profiles, "get_runtime", missing)
    row = next(
        line for line in text(profiles_table(known_targets(storage).values())).splitlines() if "cpu-onnxruntime" in line
    )
    assert "no: runtime 'onnxruntime' is not installed" in row
    assert "no: runtime 'onnxruntime' is not installed" in text(target_report(known_target("cpu-onnxruntime", storage)))


def test_the_commands_measure_write_show_and_list(storage, tmp_path):
    def said(*words: str) -> str:
        ran = CliRunner().invoke(app, [*words, "--storage", storage], env={"COLUMNS": "160"})
        assert ran.exit_code == 0, ran.output
        return ran.stdout

    file = tmp_path / "mine.yaml"
    assert "the card is a template" in said("profile", "cpu-onnxruntime", "--show")
    assert "12.3 GB/s" in said("profile", "cpu-onnxruntime", "--out", str(file))
    assert load_target(str(file)).measured.left_out == ["resnet18 speed"]
    assert "no time for" in said("profile", "cpu-onnxruntime", "--show")
    row = next(line for line in said("profiles").splitlines() if "cpu-onnxruntime" in line)
    assert "yes" in row


def test_a_target_elsewhere_is_not_measured_here(storage, tmp_path):
    far = load_target("cpu-onnxruntime").model_copy(update={"name": "far", "remote": True})
    (tmp_path / "far.yaml").write_text(card_text(far))
    with pytest.raises(
        TargetError, match=r"^target far is elsewhere: profile it on its own machine, without `remote:`"
    ):
        measure_target(str(tmp_path / "far.yaml"), storage, Console(quiet=True))
    assert "far" not in text(profiles_table(known_targets(storage).values()))


def test_a_target_or_database_that_is_not_there_is_reported(storage, tmp_path):
    with pytest.raises(TargetError, match="neither a shipped card"):
        known_target("nowhere", storage)
    (tmp_path / "text.db").write_text("no database, but some text that is long enough to be one")
    with pytest.raises(StoreError):
        known_targets(f"sqlite:///{tmp_path}/text.db")
