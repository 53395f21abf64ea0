"""The built wheel, installed into an empty environment, searches a shipped study from any folder."""

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_the_wheel_searches_a_shipped_study_from_any_folder(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path / "dist"), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True, text=True)
    wheel = next((tmp_path / "dist").glob("slimfront-*.whl"))
    venv.create(tmp_path / "empty")
    python = tmp_path / "empty" / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python)]  # this environment's: to install one takes longer
    install = [*pip, "install", "--quiet", "--no-deps", "--no-index", str(wheel)]
    subprocess.run(install, check=True, capture_output=True, text=True)
    # The dependencies are those of this environment: seven gigabytes need not be installed twice.
    site = next((tmp_path / "empty" / "lib").glob("python*")) / "site-packages"
    (site / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"])
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    program = tmp_path / "empty" / "bin" / "slimfront"
    where = subprocess.run(
        [python, "-c", "import slimfront; print(slimfront.__file__)"],
        cwd=elsewhere,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert str(site) in where.stdout  # the wheel's, not this checkout's
    assert (site / "slimfront" / "py.typed").is_file()
    search = [program, "search", "digits-demo", "--workers", "0", "--trials", "2"]
    result = subprocess.run(search, cwd=elsewhere, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "Next" in result.stdout
    assert (elsewhere / "slimfront.db").exists()
