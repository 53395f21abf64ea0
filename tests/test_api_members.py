"""What `import slimfront` offers: pinned here, so that a name is added or removed on purpose."""

import ast
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import slimfront
from slimfront import api
from slimfront.cli import app

ROOT = Path(__file__).parent.parent

PUBLIC = [
    "Audit",
    "Collection",
    "ExportedBundle",
    "OutputKind",
    "Policy",
    "Profile",
    "Profiles",
    "Report",
    "SlimfrontError",
    "Store",
    "Studies",
    "Study",
    "StudySpec",
    "UserError",
    "Verification",
    "Workload",
    "__version__",
    "compress",
    "dashboard",
    "delete",
    "gc",
    "inspect",
    "load_study",
    "profile",
    "profiles",
    "register_criterion",
    "register_distiller",
    "rename",
    "search",
    "studies",
    "verify",
]


def test_the_public_names_are_these() -> None:
    assert slimfront.__all__ == PUBLIC


def test_every_public_name_is_there_and_documented() -> None:
    for name in slimfront.__all__:
        assert inspect.getdoc(getattr(slimfront, name)), name
    assert set(slimfront.__all__) <= set(dir(slimfront))


def test_search_is_a_package_and_a_function_whichever_is_imported_first() -> None:
    code = (
        "import pickle, slimfront.search.run, slimfront; from slimfront import search; import slimfront.search as package;"
        "assert callable(search) and search is package and search.run.run_search;"
        "assert pickle.loads(pickle.dumps(search)) is search;"
        "from slimfront.core.errors import UserError\n"
        "try: search('digits')\n"
        "except UserError as error: print(error)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "search(): budget: is missing; give the number of trials, or {'timeout_s': SECONDS}\n"


def test_import_loads_nothing_heavy() -> None:
    code = "import sys, slimfront; slimfront.search; print([m for m in ('torch', 'ray', 'optuna', 'pandas', 'sqlalchemy') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_every_command_has_a_pair_of_its_name() -> None:
    commands = {command.callback.__name__ for command in app.registered_commands if command.callback}
    assert len(commands) == 15
    for name in commands:
        pair = getattr(api, name, None) or getattr(slimfront.Study, name)
        assert inspect.isfunction(pair), name
        assert re.search(rf"`(slimfront )?{name}`", api.__doc__ or ""), name


OPTION = re.compile(r"(?<![\w-])--[a-z]")
QUOTED = re.compile(r"`[^`]*`|start Ray there with --resources")
"""Options of commands that a message spells out, and of Ray's."""


def raised_texts(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Raise) and node.exc is not None:
            yield "".join(part.value for part in ast.walk(node.exc) if isinstance(part, ast.Constant) and isinstance(part.value, str))  # fmt: skip


def test_no_error_that_python_sees_speaks_of_a_command_line_option() -> None:
    rooms = (
        "api",
        "studies",
        "search",
        "evaluators",
        "hardware_profiles",
        "compression",
        "workloads",
        "spaces",
        "core",
    )
    paths = [path for room in rooms for path in (ROOT / room).rglob("*.py")]
    assert len(paths) > 200
    found = {path.name: text for path in paths for text in raised_texts(path) if OPTION.search(QUOTED.sub("", text))}
    assert found == {}
