"""The pages say what is true: generated ones equal the program, links lead somewhere, code and commands are valid."""

import ast
import importlib.util
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import pytest
import torch
import typer
import yaml
from slimfront.cli import app
from slimfront.compression.pruning.criteria import CRITERIA
from slimfront.compression.pruning.prune import pruned_copy
from slimfront.core.metrics import Phase
from slimfront.hardware_profiles.cards.target import load_target
from slimfront.spaces.knobs.registry import KNOB_KINDS
from slimfront.spaces.models.channel_groups import find_channel_groups
from slimfront.spaces.policies.draft import PolicyDraft
from slimfront.spaces.policies.policy import Policy
from slimfront.spaces.policies.pruning import Pruning
from slimfront.studies.store.trial_state import TrialState
from slimfront.studies.study_file.load import load_study, shipped_studies
from torch import nn
from torch.utils.data import TensorDataset

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.glob("**/*.md"), *ROOT.glob("examples/*/*.md")])
GUIDE = sorted(DOCS.glob("guide/*.md"))
FENCE = re.compile(r"```(\w+)(?: title=\"([^\"]+)\")?\n(.*?)```", re.DOTALL)


def page_id(page: Path) -> str:
    return str(page.relative_to(ROOT))


def code_blocks(page: Path, language: str) -> list[str]:
    return [code for found, _, code in FENCE.findall(page.read_text()) if found == language]


def generator():
    spec = importlib.util.spec_from_file_location("generate", DOCS / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


GENERATE = generator()


@pytest.mark.parametrize("name", GENERATE.PAGES)
def test_a_generated_page_is_what_the_program_says(name: str) -> None:
    assert (DOCS / "reference" / name).read_text() == GENERATE.PAGES[name](), "run `make docs`"


@pytest.mark.parametrize(("model", "kind"), [(GENERATE.StudySpec, "study"), (GENERATE.Target, "target")])
def test_no_key_is_explained_that_is_not_there(model: type, kind: str) -> None:
    assert set(GENERATE.KEYS[kind]) <= {key for key, _, _ in GENERATE.schema_keys(model)}


def test_every_command_and_option_has_help() -> None:
    for name, command in typer.main.get_command(app).commands.items():
        assert command.help, name
        for parameter in command.params:
            assert parameter.help, f"{name} {parameter.name}"


def test_every_command_has_an_example_of_its_own() -> None:
    commands = typer.main.get_command(app).commands
    assert set(GENERATE.EXAMPLES) == set(commands)
    assert all(line.split()[:2] == ["slimfront", name] for name, line in GENERATE.EXAMPLES.items())
    page = (DOCS / "reference" / "cli.md").read_text()
    assert [line for line in GENERATE.EXAMPLES.values() if f"\n{line}\n" not in page] == []


YAML = [(page, block) for page in PAGES for block in code_blocks(page, "yaml")]
REST = {
    "study": "s",
    "workload": "digits",
    "target": "cpu-openvino",
    "budget": {"trials": 1},
    "objectives": ["flops", "bops"],
}


@pytest.mark.parametrize(("page", "block"), YAML, ids=[page_id(page) for page, _ in YAML])
def test_the_pages_yaml_is_valid(page: Path, block: str, tmp_path: Path) -> None:
    """A target card, a study file, or a part of one: of which the rest is added."""
    written = yaml.safe_load(block)
    is_card, path = "runtime" in written, tmp_path / "page.yaml"
    path.write_text(block if is_card or "study" in written else yaml.safe_dump({**REST, **written}))
    if is_card:
        assert load_target(str(path)).name == written["name"]
    else:
        assert load_study(str(path)).study == written.get("study", "s")


COMMANDS = [
    line.partition("#")[0].partition("|")[0]
    for page in PAGES
    for block in code_blocks(page, "console")
    for line in block.splitlines()
    if line.startswith("slimfront ")
]


@pytest.mark.parametrize("line", COMMANDS)
def test_the_pages_commands_have_these_options(line: str) -> None:
    group = typer.main.get_command(app)
    _, name, *arguments = shlex.split(line)
    group.commands[name].make_context(name, arguments)  # parsed, not run


@pytest.mark.parametrize("name", shipped_studies())
def test_shipped_studies_are_valid(name: str) -> None:
    assert load_study(name).study == name


def anchors(page: Path) -> set[str]:
    """What a link to a heading of the page ends with."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", text).strip().lower()) for text in headings}


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        path, _, anchor = link.partition("#")
        found = page.parent / path if path else page
        assert "://" in link or (found.exists() and (not anchor or anchor in anchors(found))), link


def named_pages() -> Iterator[tuple[str, str]]:
    """Every page of docs/ that Python, Makefile or CI name, and where."""
    for file in [*ROOT.glob("*.py"), *ROOT.glob("*/**/*.py"), ROOT / "Makefile"]:
        if not {".venv", "build"} & set(file.relative_to(ROOT).parts):
            for named in re.findall(r"docs/[\w./-]+\.(?:md|py|png|svg)", file.read_text()):
                yield str(file.relative_to(ROOT)), named


def test_pages_that_the_code_names_are_there() -> None:
    named = list(named_pages())
    assert named, "the JSON pages is named by the commands' help"
    assert [(file, page) for file, page in named if not (ROOT / page).exists()] == []


def test_contributing_names_files_that_are_there() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    rooms = {path.name for path in ROOT.iterdir() if path.is_dir()}
    named = [path for path in re.findall(r"`([\w./-]+)`", text) if "/" in path and path.split("/")[0] in rooms]
    assert named
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_the_map_of_the_code_names_what_is_there() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text().partition("## Where things are")[2].partition("\n## ")[0]
    named = {
        name.rpartition(".")[2] for name in re.findall(r"`((?:\w+\.)?_?[a-z_]+)`", text) if not name.endswith(".py")
    }
    assert {"pruned_copy", "_out_of_bounds", "lower"} <= named
    files = [
        path
        for room in ("search", "compression", "evaluators", "hardware_profiles")
        for path in (ROOT / room).rglob("*.py")
    ]
    defined = {name for path in files for name in re.findall(r"^ *def (\w+)", path.read_text(), re.MULTILINE)}
    assert {name for name in named if name not in defined} == set()


def load_model(checkpoint: str = "") -> nn.Module:
    """What the pages leave to the reader."""
    return nn.Sequential(nn.Flatten(), nn.Linear(4, 2)).eval()


def load_splits() -> list[TensorDataset]:
    """As above."""
    return [TensorDataset(torch.randn(8, 1, 2, 2), torch.arange(8) % 2) for _ in range(4)]


PYTHON = [
    (page, code)
    for page in PAGES
    for language, title, code in FENCE.findall(page.read_text())
    if language == "python" and not title  # files of a title are run by test_tutorial.py
]


@pytest.mark.parametrize(("page", "block"), PYTHON, ids=[page_id(page) for page, _ in PYTHON])
def test_python_on_the_pages_runs(page: Path, block: str) -> None:
    names: dict = {"load_model": load_model, "load_splits": load_splits, "__name__": page.stem}
    exec(compile(block, page.name, "exec"), names)
    if "workload" in names:
        names["workload"]().check()
    if "study" in names:
        assert "sampler_fallback" not in names["study"].user_attrs


@pytest.fixture(scope="module")
def plug_in() -> dict[str, Any]:
    """What the Python of the page on plug-ins defines."""
    names: dict[str, Any] = {}
    for block in code_blocks(DOCS / "guide" / "plug-ins.md", "python"):
        exec(block, names)
    return names


@pytest.fixture
def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3)).eval()


def test_a_criterion_from_outside_is_written_as_the_page_says(
    plug_in: dict[str, Any], network: nn.Sequential, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(CRITERIA._own, "first", plug_in["FirstChannels"])
    x, policy = torch.randn(1, 4), Policy(width=0.5, pruning=Pruning("first"))
    pruned = pruned_copy(network, x, policy, find_channel_groups(network, x)[0])
    torch.testing.assert_close(pruned[0].weight, network[0].weight[:8])


def test_a_metric_from_outside_is_written_as_the_page_says(plug_in: dict[str, Any], network: nn.Sequential) -> None:
    network[0].weight.data[2, 3] = -7
    lowered = SimpleNamespace(candidate=SimpleNamespace(model=network))
    [measurement] = plug_in["WeightRange"]().evaluate(lowered, None)
    assert (measurement.name, measurement.value) == (plug_in["WEIGHT_RANGE"].name, 7)


def test_a_knob_from_outside_is_written_as_the_page_says(plug_in: dict[str, Any], network: nn.Sequential) -> None:
    draft, before = PolicyDraft(), network[0].weight.detach().clone()
    plug_in["CLIP"].write(draft, (), 1.0)
    plug_in["CLIP"].compress(network, draft.policy())
    spread = before.std().item()
    torch.testing.assert_close(network[0].weight.data, before.clamp(-spread, spread))


def test_every_page_is_in_the_navigation_once() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text().split("\nnav:")[1]
    listed = re.findall(r"[\w/-]+\.md$", navigation, re.MULTILINE)
    assert sorted(listed) == sorted(str(page.relative_to(DOCS)) for page in DOCS.glob("**/*.md"))


@pytest.mark.parametrize("page", GUIDE, ids=page_id)
def test_a_guide_is_short(page: Path) -> None:
    assert len(page.read_text().split()) <= 900


def prose(page: Path) -> list[str]:
    """Paragraphs and list items, without code, tables, links and what is set as code."""
    text = re.sub(r"`[^`\n]*`", "", re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL))
    text = re.sub(r"\([^()]*\d{4}[^()]*\)|arXiv:[\d.]+", "", text)  # papers
    paragraphs = re.split(r"\n\s*\n|\n(?=- |\d+\. )", text)
    return [part for part in paragraphs if part.strip() and not part.lstrip().startswith(("|", "#"))]


@pytest.mark.parametrize("page", [*GUIDE, *sorted(DOCS.glob("explanation/*.md"))], ids=page_id)
def test_prose_holds_few_decimals(page: Path) -> None:
    """Figures stand in experiments/."""
    crowded = [part for part in prose(page) if len(re.findall(r"\d+\.\d+", part)) > 3]
    assert crowded == []


@pytest.mark.parametrize("page", sorted(DOCS.glob("experiments/*.md")), ids=page_id)
def test_an_experiment_says_how_it_was_made(page: Path) -> None:
    if page.name != "index.md":
        text = page.read_text()
        assert "\n**Result.** " in text
        assert "| commit | machine | date |" in text
        assert "```console\n" in text


PLAIN = """95 % interval; 95 % low; FLOPs; GMAC/s; Kendall; Spearman; activation bits; allowed; arithmetic us; at its least; batch; because;
bits; bound by; by; channels; choices; created; ended; fits this machine; group; here; high; how; hypervolume; key; kind;
layer; layers that lose them; low; measured; memory us; method; n; name; not for it; now; operation; operations; quantity;
ran in; removed; runs in; runtime; share; sparsity; technique; threads; trials; unit; value; weight bits; weight/activation bits; weights;
what they are good for; why not; weight sparsity; embedding bits; channel sparsity; complete; failed; running; files; MB; dispatch us; kept in multiples of; kept, width included;
recovery epochs; recurrent weights"""
"""Headings of tables, labels of knobs and states of trials that need no glossary."""


def headings() -> Iterator[str]:
    """The headings of the tables that commands print, without the mark of numbers."""
    for path in [path for room in ("studies", "api", "cli") for path in (ROOT / room).rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.Assign(targets=[ast.Name(id="header")], value=ast.Tuple(elts=cells)):
                    pass
                case ast.Call(func=ast.Name(id="rows_table"), args=[ast.Tuple(elts=cells), *_]):
                    pass
                case _:
                    continue
            yield from (cell.value.removesuffix(">") for cell in cells if isinstance(cell, ast.Constant) and cell.value)


def test_the_glossary_is_sorted_and_has_our_words() -> None:
    """Each word is an entry, or set in italics within one."""
    text = (DOCS / "reference" / "glossary.md").read_text()
    words = re.findall(r"^### (.*)$", text, re.MULTILINE)
    assert words == sorted(words, key=str.lower)
    explained = {word.lower() for word in (*words, *re.findall(r"\*([^*\n]+)\*", text))}
    ours = {*headings(), *TrialState, *get_args(Phase), *(kind.label for kind in KNOB_KINDS.values())}
    assert {"channel group", "depth", "interrupted", "scored"} <= ours
    plain = {*PLAIN.replace("\n", " ").split("; ")}
    assert sorted(ours - explained - plain) == []
    assert sorted(plain - ours) == [], "which are words of the program no more"
