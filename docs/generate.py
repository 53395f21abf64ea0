"""Write the reference pages that follow from the program. `make docs` runs it, a test compares."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from typing import Any

import slimfront
import typer
import yaml
from pydantic import BaseModel
from slimfront import api
from slimfront.cli import app
from slimfront.compression.pruning.criteria import CRITERIA
from slimfront.compression.recovery.distil import DISTILLERS
from slimfront.core.metrics import METRICS
from slimfront.hardware_profiles.cards.target import Target
from slimfront.spaces.policies import policy as policy_module
from slimfront.spaces.policies.policy import LayerPolicy, Policy, Recovery
from slimfront.spaces.policies.pruning import Pruning
from slimfront.spaces.policies.quantization_scheme import Scheme
from slimfront.studies.study_file.spec import StudySpec
from slimfront.workloads.metrics import METRIC_NAMES, NamedMetric, Reads
from typer.cli import get_docs_for_click

FOLDER = Path(__file__).parent / "reference"
KEYS = yaml.safe_load((Path(__file__).parent / "keys.yaml").read_text())

EXAMPLE = Path(__file__).parent.parent / "tests" / "spaces" / "golden" / "policy-schema-1.json"
EXAMPLES = {
    "search": "slimfront search study.yaml --trials 60 --workers 4",
    "inspect": "slimfront inspect torchvision:resnet18 --target cpu-openvino",
    "studies": "slimfront studies --storage postgresql://team@db.example/slimfront",
    "status": "slimfront status digits-demo",
    "show": "slimfront show digits-demo 12",
    "front": "slimfront front digits-demo --format csv --out front.csv",
    "audit": "slimfront audit digits-demo --plot audit.html",
    "export": "slimfront export digits-demo --pick fastest --to bundle",
    "verify": "slimfront verify bundle --study digits-demo",
    "profile": "slimfront profile cpu-openvino --out my-machine.yaml",
    "profiles": "slimfront profiles --format json",
    "dashboard": "slimfront dashboard digits-demo --port 9000",
    "gc": "slimfront gc digits-demo --keep front --dry-run",
    "delete": "slimfront delete digits-demo --yes",
    "rename": "slimfront rename digits-demo digits-july",
}
"""Command -> one call of it."""

EXIT_CODES = {
    0: "success",
    1: "the command ran and the answer is no: a search found nothing or could not go on, a bundle is not what its card says",
    2: "wrong input: one line on stderr names the file, the key or option and what would be right",
    130: "interrupted by Ctrl-C, SIGTERM or a closed terminal; finished trials are stored",
}

SECTION = re.compile(r"^(Args|Attributes|Returns|Raises|Yields):$", re.MULTILINE)


def table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table."""
    lines = [list(header), *(list(row) for row in rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def page(title: str, *parts: str) -> str:
    """A page of parts, each followed by an empty line."""
    return "\n\n".join([f"# {title}", *(part.strip() for part in parts)]) + "\n"


def command_line() -> str:
    """The commands, their options, an example of each and the exit codes."""
    command = typer.main.get_command(app)
    text = get_docs_for_click(obj=command, ctx=typer.Context(command), name="slimfront", title="Command line")
    for name, example in EXAMPLES.items():
        usage = re.compile(rf"(## `slimfront {name}`\n.*?\*\*Usage\*\*:\n\n```console\n.*?```\n)", re.DOTALL)
        text = usage.sub(lambda found, line=example: f"{found[1]}\n**Example**:\n\n```console\n{line}\n```\n", text, 1)
    rows = ((f"[`{name}`](#slimfront-{name})", first_sentence(each.help)) for name, each in command.commands.items())
    text = re.sub(
        r"\*\*Commands\*\*:\n\n.*?\n\n",
        lambda _: table(("command", "what it does"), rows) + "\n\n",
        text,
        count=1,
        flags=re.DOTALL,
    )
    codes = table(("exit code", "meaning"), ((str(code), meaning) for code, meaning in EXIT_CODES.items()))
    return f"{text.strip()}\n\n## Exit codes\n\n{codes}\n"


def first_sentence(text: str) -> str:
    """A command's help up to the first empty line, on one line."""
    return " ".join(text.partition("\n\n")[0].split())


def metrics() -> str:
    """Every metric that objectives, constraints and reports name."""
    rows = ((f"`{m.name}`", m.unit, m.direction, m.phase, m.meaning) for m in METRICS.values())
    intro = (
        "The numbers that objectives, constraints and reports name. [How numbers are measured]"
        "(../explanation/measuring.md) explains the protocols. Metrics of the test split cannot be objectives."
    )
    return page("Metrics", intro, table(("name", "unit", "better", "known once", "meaning"), rows) + workload_metrics())


READS: dict[Reads, str] = {
    "classes": "`[n, classes]`, a class",
    "scores": "`[n, classes]`, a class; one logit, 0 or 1; `[n, labels]`, each 0 or 1",
    "values": "any shape, as many values",
    "positions": "`[n, classes, ...]`, a class for each position",
    "tokens": "`[n, tokens, classes]`, a class for each token",
}


def workload_metrics() -> str:
    """The metrics that a workload may name: what `accuracy` then is."""
    rows = (
        (f"`{name}`", m.unit, "maximize" if m.higher_is_better else "minimize", READS[m.reads], margin_text(m))
        for name, m in METRIC_NAMES.items()
    )
    intro = (
        "What `accuracy` and `accuracy_drop` are follows from the workload's metric, [a name of these, a function or a "
        "`torchmetrics.Metric`](../guide/metrics-and-outputs.md). The [margin](glossary.md#margin) is the loss that hypervolumes are counted from."
    )
    return f"\n\n## What accuracy is\n\n{intro}\n\n" + table(
        ("name", "unit", "better", "outputs, targets", "margin"), rows
    )


def margin_text(metric: NamedMetric) -> str:
    """The margin of a metric in words."""
    return f"{metric.share:.0%} of the uncompressed model's" if metric.margin is None else f"{metric.margin:g}"


def schema_keys(model: type[BaseModel]) -> Iterator[tuple[str, Mapping[str, Any], bool]]:
    """Dotted key, JSON schema and whether it is required, of a model and of the models it holds."""
    schema = model.model_json_schema()
    parts = {name: part for name, part in schema.get("$defs", {}).items() if name.endswith("Spec")}
    for key, value in schema["properties"].items():
        held = [name for name in parts if f'"#/$defs/{name}"' in json.dumps(value)]
        if not held or key == "rungs":
            yield key, value, key in schema.get("required", ())
        for name in held:
            yield from ((f"{key}.{inner}", part, False) for inner, part in parts[name]["properties"].items())


def type_text(schema: Mapping[str, Any]) -> str:
    """A JSON schema's type in words."""
    if "anyOf" in schema:
        return " or ".join(type_text(part) for part in schema["anyOf"] if part.get("type") != "null")
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if schema.get("type") == "array":
        return f"list of {type_text(schema.get('items', {}))}"
    words = {"integer": "whole number", "number": "number", "string": "text", "boolean": "true or false"}
    return words.get(schema.get("type", ""), "mapping" if "$ref" in schema or schema.get("type") else "value")


def default_text(schema: Mapping[str, Any], required: bool) -> str:
    """The default as YAML."""
    if required:
        return "required"
    default = schema.get("default")
    return "none" if default is None else f"`{json.dumps(default).strip(chr(34))}`"


REGISTRIES = {"space.criterion": CRITERIA, "recovery.distiller": DISTILLERS}
"""Key of a study file -> the registry of the names it takes."""


def keys_table(model: type[BaseModel], kind: str) -> str:
    """The keys of a file, a table for each mapping: type and default from the program, unit and meaning from keys.yaml or, of
    a knob, from its kind."""
    parts: dict[str, list[tuple[str, ...]]] = {}
    for key, schema, required in schema_keys(model):
        unit, meaning = KEYS[kind].get(key) or (schema["unit"], schema["description"])
        if key in REGISTRIES:
            meaning += f" Built in: {', '.join(f'`{name}`' for name in REGISTRIES[key])}."
        typed = f"{type_text(schema)}; {unit}" if unit else type_text(schema)
        row = (f"`{key}`", typed, default_text(schema, required), meaning)
        parts.setdefault(key.rpartition(".")[0], []).append(row)
    header = ("key", "type; unit", "default", "meaning")
    return "\n\n".join(
        f"## {f'`{part}`' if part else 'Top level'}\n\n{table(header, rows)}" for part, rows in parts.items()
    )


STUDY_INTRO = """
A study file is a YAML mapping; `budget.trials` is the key `trials` inside `budget`. A knob that is not named is off, and a knob with one choice holds in
every policy. Options of `slimfront search` replace the file's values for one run. A study that has begun keeps its workload and its options, target, reference,
objectives, constraints, seed, space, recovery, quantization and shapes; workers, budget and sampler may change.

```yaml
study: my-study
workload: digits
target: cpu-openvino
objectives: [accuracy_drop, latency_ms]
constraints: ["accuracy_drop <= 0.05"]
budget: {trials: 40, timeout_s: 600}
workers: 2
space:
  granularity: layer
  weight_bits: [4, 8, 32]
  activation_bits: [8, 32]
  channel_sparsity: [0, 0.25, 0.5]
  recovery_epochs: [0, 1]
recovery: {learning_rate: 0.02}
```
"""

TARGET_INTRO = """
A target card is a YAML file that names a machine's runtime, threads and batch. The shipped ones are templates in which nothing was measured;
`slimfront profile` writes measured ones. [Choosing a target](../guide/choosing-a-target.md) says which to take.

```yaml
name: my-laptop
runtime: openvino
threads: 1
batch: 1
weight_bits: [4, 8, 32]
activation_bits: [8, 32]
```
"""


def study_file() -> str:
    """Every key of a study file."""
    return page("The study file", STUDY_INTRO, keys_table(StudySpec, "study"))


def target_card() -> str:
    """Every key of a target card."""
    return page("The target card", TARGET_INTRO, keys_table(Target, "target"))


def sections(docstring: str) -> tuple[str, dict[str, str]]:
    """A docstring's text and its sections of Google style, by name."""
    head, *found = SECTION.split(inspect.cleandoc(docstring))
    return head.strip(), {name: inspect.cleandoc(body) for name, body in zip(found[::2], found[1::2], strict=True)}


def entries(section: str) -> Iterator[tuple[str, str]]:
    """The entries `name: meaning` of a section; further lines of one are indented."""
    for entry in re.split(r"\n(?=\S)", section):
        name, _, meaning = entry.partition(": ")
        for single in name.split(", "):
            yield single, " ".join(meaning.split())


def spelled(meaning: str, part: type) -> str:
    """A meaning with constants of the module of `part` replaced by what they hold."""

    def values(found: re.Match[str]) -> str:
        held = getattr(inspect.getmodule(part), found[1], None)
        return ", ".join(f"`{value}`" for value in held) if isinstance(held, tuple) else found[0]

    return re.sub(r"`([A-Z_]+)`", values, meaning)


def field_default(field: Field[Any]) -> str:
    """A dataclass field's default, in words where it is a value of its own."""
    if field.default is MISSING or is_dataclass(field.default):
        return "empty"
    shown = list(field.default) if isinstance(field.default, tuple) else field.default
    return f"`{json.dumps(shown).strip(chr(34))}`"


def dataclass_table(part: type) -> str:
    """A dataclass's fields with their defaults, and what its docstring says of them."""
    meanings = dict(entries(sections(part.__doc__ or "")[1]["Attributes"]))
    rows = ((f"`{f.name}`", field_default(f), spelled(meanings[f.name], part)) for f in fields(part))
    return table(("key", "default", "meaning"), rows)


POLICY_INTRO = f"""
A policy is one point of a space: everything that was decided about a model, as canonical JSON. Keys at their default are left out, so equal policies are equal
texts with equal digests. A policy replays: the same JSON, seed, batch size, threads and versions give the same weights.

```json
{json.dumps(json.loads(EXAMPLE.read_text()), indent=2)}
```

`schema` is the version of the format, {policy_module.SCHEMA} now. A file with an unknown schema, key or value is refused.
"""


def policy_file() -> str:
    """The format of policy.json."""
    parts = (("layers.NAME", LayerPolicy), ("recovery", Recovery), ("pruning", Pruning), ("scheme", Scheme))
    tables = [f"## `{key}`\n\n{dataclass_table(part)}" for key, part in parts]
    return page("policy.json", POLICY_INTRO, f"## Top level\n\n{dataclass_table(Policy)}", *tables)


def argument(parameter: inspect.Parameter) -> str:
    """A parameter as Python writes it, an annotation that is text without its quotes."""
    name = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}.get(parameter.kind, "") + parameter.name
    typed = "" if parameter.annotation is parameter.empty else f": {annotation(parameter.annotation)}"
    default = str(parameter.default) if isinstance(parameter.default, Path) else parameter.default
    return f"{name}{typed}" + ("" if parameter.default is parameter.empty else f" = {default!r}")


def annotation(found: Any) -> str:
    """A type as the code writes it."""
    return found if isinstance(found, str) else inspect.formatannotation(found)


def signature(name: str, function: Callable[..., Any]) -> str:
    """A call as Python writes it, one argument a line where it is long."""
    called = inspect.signature(function)
    arguments = []
    for parameter in called.parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and "*" not in [text[:1] for text in arguments]:
            arguments.append("*")
        arguments.append(argument(parameter))
    returned = "" if called.return_annotation is called.empty else f" -> {annotation(called.return_annotation)}"
    text = f"{name}({', '.join(arguments)}){returned}"
    if len(text) > 100:
        text = f"{name}(\n" + "".join(f"    {part},\n" for part in arguments) + f"){returned}"
    return f"```text\n{text}\n```"


def documented(docstring: str | None) -> str:
    """A docstring as Markdown."""
    head, found = sections(docstring or "")
    lists = []
    for name, body in found.items():
        items = "\n".join(f"- `{key}`: {text}" if text else f"- {key}" for key, text in entries(body))
        lists.append(f"{name}:\n\n{' '.join(body.split()) if name == 'Returns' else items}")
    return "\n\n".join([head, *lists])


def members(owner: type) -> Iterator[str]:
    """The public methods and properties of a class that say what they are."""
    for name, member in vars(owner).items():
        function = getattr(member, "__func__", member)
        if name.startswith("_") or not (inspect.isfunction(function) or isinstance(function, property)):
            continue
        title = f"### {owner.__name__}.{name}"
        call = "" if isinstance(function, property) else signature(name, function)
        yield "\n\n".join(part for part in (title, call, documented(function.__doc__)) if part)


def api_entry(name: str) -> str:
    """What slimfront exports under `name`."""
    thing = getattr(api, name, getattr(slimfront, name))  # `slimfront.search` is a package that can be called
    if inspect.isclass(thing):
        return "\n\n".join([f"## {name}", documented(thing.__doc__), *members(thing)])
    if callable(thing):
        return "\n\n".join([f"## {name}", signature(name, thing), documented(thing.__doc__)])
    return f"## {name}\n\n`{thing!r}`"


FIRST = ("search", "Study", "studies", "verify", "compress", "inspect", "profile", "profiles", "dashboard", "Workload")
"""What a reader of the Python API looks for first."""

COMMANDS = (api.__doc__ or "").partition("\n\n")[2].strip()
"""The table of commands and their pairs in Python."""

API_INTRO = f"""
What `import slimfront` offers. Everything else is private by convention and may change. The words are those of the
[command line](cli.md), in pairs:

{COMMANDS}
"""


def python_api() -> str:
    """Everything that the package exports, from its docstrings."""
    names = sorted(
        slimfront.__all__, key=lambda name: (name not in FIRST, FIRST.index(name) if name in FIRST else 0, name)
    )
    return page("Python API", API_INTRO, *(api_entry(name) for name in names))


PAGES: dict[str, Callable[[], str]] = {
    "cli.md": command_line,
    "metrics.md": metrics,
    "policy.md": policy_file,
    "python-api.md": python_api,
    "study-file.md": study_file,
    "target-card.md": target_card,
}

if __name__ == "__main__":
    for file, write in PAGES.items():
        (FOLDER / file).write_text(write())
