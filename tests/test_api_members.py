"""What `import slimfront` offers: pinned here, so that a name is added or removed on purpose."""

import inspect
import subprocess
import sys

import slimfront

PUBLIC = [
    "ExportedBundle",
    "Policy",
    "SlimfrontError",
    "Store",
    "Study",
    "StudySpec",
    "UserError",
    "Verification",
    "Workload",
    "__version__",
    "compress",
    "inspect",
    "load_study",
    "register_criterion",
    "register_distiller",
    "search",
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
