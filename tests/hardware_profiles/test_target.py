"""Target cards: those that are shipped, one's own, and what is wrong with a bad one in a line."""

import errno
from pathlib import Path

import pytest
import yaml
from slimfront.core.errors import TargetError
from slimfront.hardware_profiles.cards.target import CARDS, Target, load_target, shipped_targets
from slimfront.hardware_profiles.runtimes.base import get_runtime
from slimfront.hardware_profiles.runtimes.registry import runtimes

GOOD = {"name": "mine", "runtime": "openvino", "weight_bits": [8, 32], "activation_bits": [8, 32]}


@pytest.mark.parametrize("name", shipped_targets())
def test_shipped_cards_are_named_after_their_file_and_can_be_used(name):
    target = load_target(name)
    assert target.name == name
    assert target.note
    try:
        assert get_runtime(target.runtime).name == target.runtime
    except TargetError as reason:  # no GPU, or no package for it
        pytest.skip(str(reason))


@pytest.mark.parametrize("name", shipped_targets())
def test_shipped_cards_say_that_nothing_in_them_was_measured(name):
    assert (CARDS / f"{name}.yaml").read_text().startswith("# A template: nothing in it was measured.")
    assert load_target(name).measured is None


def test_every_runtime_has_a_shipped_card():
    assert {load_target(name).runtime for name in shipped_targets()} == set(runtimes())


def test_ones_own_card_is_found_next_to_the_study(tmp_path):
    (tmp_path / "card.yaml").write_text(yaml.safe_dump({**GOOD, "threads": 2, "batch": 4}))
    expected = Target(name="mine", runtime="openvino", threads=2, batch=4, weight_bits=[8, 32], activation_bits=[8, 32])
    assert load_target("card.yaml", tmp_path) == expected
    assert load_target(str(tmp_path / "card.yaml")) == expected


def test_a_target_travels_as_json():
    target = load_target("cpu-openvino")
    assert Target.model_validate_json(target.model_dump_json()) == target


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"threads": 0}, "threads: must be at least 1, not 0"),
        ({"threads": "two"}, "threads: must be a whole number, not 'two'"),
        ({"thread": 2}, "thread: unknown key; did you mean threads?"),
        ({"measured": {"memory": 1}}, "measured.memory: unknown key; known are dispatch_us, "),
        ({"threads": True}, "threads: "),
        ({"streams": 0}, "streams: "),
        ({"threads": 3, "streams": 2}, "streams: 2 do not share 3 threads evenly"),
        ({"batch": 1.5}, "batch: "),
        ({"name": "a b"}, "name: "),
        ({"name": None}, "name: "),
        ({"colour": "red"}, "colour: "),
        ({"weight_bits": []}, "weight_bits: "),
        ({"weight_bits": 8}, "weight_bits: "),
        ({"weight_bits": [7, 32]}, "weight_bits: 7 is not one of 2, 3, 4, 5, 6, 8, 16, 32"),
        ({"activation_bits": [2, 32]}, "activation_bits: 2 is not one of 4, 6, 8, 16, 32"),
        ({"activation_bits": [8]}, "activation_bits: 32 must be offered"),
        ({"runtime": ...}, "runtime: is missing"),
        ({"runtime": "tensorflow"}, "runtime: unknown runtime 'tensorflow'; known are "),
        ({"options": {"fast": True}}, "options.fast: openvino has no options"),
        ({"runtime": "torch", "options": {"compile": 1}}, "options.compile: 1 is not one of False to True"),
        ({"runtime": "tensorrt", "options": {"optimization_level": 6}}, "optimization_level: 6 is not one of 0 to 5"),
        ({"runtime": "tensorrt", "options": {"workspace_mib": 0}}, "options.workspace_mib: 0 is not one of 1 to "),
        (
            {"runtime": "torch-cuda", "threads": 2, "streams": 2},
            "streams: torch-cuda is timed with one batch on the GPU",
        ),
    ],
    ids=str,
)
def test_a_bad_card_is_reported_in_one_line_with_file_and_key(change, says, tmp_path):
    document = {key: value for key, value in {**GOOD, **change}.items() if value is not ...}
    (tmp_path / "card.yaml").write_text(yaml.safe_dump(document))
    with pytest.raises(TargetError) as caught:
        load_target("card.yaml", tmp_path)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / 'card.yaml'}: ")
    assert says in message
    assert "\n" not in message


@pytest.mark.parametrize(
    "content",
    [b"", b"- 1\n- 2\n", b"just words", b"a: [1", b"\xff\xfe\x00 not text", b"a: b: c", b"\x00", b"[" * 20_000],
    ids=lambda content: str(content[:9]),
)
def test_a_file_that_is_no_card_is_reported_in_one_line(content, tmp_path):
    (tmp_path / "card.yaml").write_bytes(content)
    with pytest.raises(TargetError) as caught:
        load_target("card.yaml", tmp_path)
    assert str(caught.value).startswith(f"{tmp_path / 'card.yaml'}:")
    assert "\n" not in str(caught.value)


def test_a_card_that_cannot_be_read_is_reported_in_one_line(tmp_path, monkeypatch):
    (tmp_path / "card.yaml").write_text(yaml.safe_dump(GOOD))

    def refuse(path, mode):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)  # root may read whatever its mode says
    with pytest.raises(TargetError, match=r"card\.yaml: cannot be read: permission denied$"):
        load_target(str(tmp_path / "card.yaml"))


@pytest.mark.parametrize("reference", ["nowhere", ".", "missing.yaml", "", "x" * 5000])
def test_a_target_that_is_not_there_is_reported_with_the_shipped_ones(reference, tmp_path):
    with pytest.raises(
        TargetError, match=r"neither a shipped card nor a file; known are (\S+, )*cpu-openvino(, \S+)*$"
    ):
        load_target(reference, tmp_path)
