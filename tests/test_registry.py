"""Registries: names of one meaning each, packages imported by their own name only and refused in one line."""

import sys
from pathlib import Path

import pytest
from slimfront.core.errors import PolicyError
from slimfront.core.registry import Registry


def installed(folder: Path, package: str, entries: str, code: str = "") -> None:
    """A package as pip leaves it: its module, and metadata that names its entry points."""
    (folder / f"{package}.py").write_text(code)
    metadata = folder / f"{package}-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(f"[slimfront.colours]\n{entries}\n")


@pytest.fixture
def registry(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    colours: Registry[str] = Registry("colour", "slimfront.colours", PolicyError)
    colours.register("red", "#f00")
    return colours


def test_an_entry_point_s_package_is_imported_when_its_name_is_looked_up(tmp_path, registry):
    installed(tmp_path, "paints", "blue = paints:BLUE", "BLUE = '#00f'")
    assert list(registry) == ["blue", "red"]
    assert "blue" in registry
    assert len(registry) == 2
    assert "paints" not in sys.modules
    assert registry["blue"] == "#00f"


def test_an_unknown_name_lists_the_known_ones(registry):
    with pytest.raises(PolicyError, match=r"^unknown colour 'grey'; known are red$"):
        registry["grey"]


def test_a_name_is_registered_once_unless_it_is_replaced(registry):
    with pytest.raises(PolicyError, match=r"^colour 'red' is already registered; known are red$"):
        registry.register("red", "#e00")
    registry.register("red", "#e00", replace=True)
    assert registry["red"] == "#e00"


def test_a_class_that_is_defined_again_replaces_the_former_one():
    def define() -> object:
        class Mine:
            pass

        return Mine()

    things: Registry[object] = Registry("thing", "slimfront.things", PolicyError, {"own": object()})
    things.register("mine", define())
    things.register("mine", again := define())
    assert things["mine"] is again
    assert list(things.registered) == ["mine"]


def test_a_name_that_two_packages_offer_is_refused_and_no_other(tmp_path, registry):
    installed(tmp_path, "paints", "blue = paints:BLUE\nred = paints:BLUE", "BLUE = '#00f'")
    installed(tmp_path, "inks", "blue = inks:BLUE", "BLUE = '#00e'")
    with pytest.raises(PolicyError, match=r"colour 'blue' is offered by .*inks 1\.0.*; uninstall all but one"):
        registry["blue"]
    with pytest.raises(
        PolicyError, match=r"colour 'red' is offered by slimfront and paints 1\.0; uninstall all but one"
    ):
        registry["red"]
    assert list(registry) == ["blue", "red"]


def test_a_broken_package_is_refused_by_its_own_name_alone(tmp_path, registry):
    installed(tmp_path, "broken", "green = broken:GREEN", "raise OSError('no such\\nlibrary')")
    assert registry["red"] == "#f00"
    with pytest.raises(PolicyError) as caught:
        registry["green"]
    assert str(caught.value) == "colour 'green' of package broken 1.0 cannot be imported: OSError: no such library"
