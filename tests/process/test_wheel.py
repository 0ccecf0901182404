"""What users install: the wheel has exactly the tree's files, and the demo runs from it, far from the checkout."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

from everram.runtime.version import PACKAGE_VERSION

ROOT = Path(__file__).resolve().parents[2]
BUILD_TIMEOUT_S = 180.0
"""Building is isolated: setuptools may have to be fetched first."""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy of what is under version control or could be: a build writes into its source folder."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        (source / name).write_bytes((ROOT / name).read_bytes())
    for folder in ("runtime", "actors", "examples"):
        for path in (ROOT / folder).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                target = source / path.relative_to(ROOT)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(path.read_bytes())
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--wheel-dir", str(out), str(source)]
    built = subprocess.run(command, capture_output=True, text=True, timeout=BUILD_TIMEOUT_S, check=False)
    assert built.returncode == 0, built.stderr
    (found,) = out.glob("everram-*.whl")
    return found


@pytest.mark.timeout(200)
def test_the_wheel_has_the_trees_files(wheel: Path) -> None:
    """A package that is missing from pyproject.toml's list would only be missed by users."""
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if ".dist-info/" not in name]
        content = {name: archive.read(name) for name in names}
    expected = {
        f"everram/{path.relative_to(ROOT)}": path.read_bytes()
        for folder in ("runtime", "actors", "examples")
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and path.suffix in (".py", ".pyi", ".typed")
    }
    assert sorted(content) == sorted(expected)
    assert content == expected


def test_the_version_is_said_once() -> None:
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"] == PACKAGE_VERSION


def test_every_command_module_is_in_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for module in project["entry-points"]["everram.commands"].values():
        assert (ROOT / f"{module.removeprefix('everram.').replace('.', '/')}.py").is_file(), module


@pytest.fixture
def installed(wheel: Path, tmp_path: Path) -> Path:
    """A virtual environment with the wheel alone; dependencies come from the one that runs the tests."""
    folder = tmp_path / "venv"
    venv.create(folder, symlinks=True, with_pip=False)
    python = folder / "bin" / "python"
    command = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        str(python),
        "install",
        "-q",
        "--no-deps",
        "--no-index",
        str(wheel),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    (site,) = (folder / "lib").glob("python*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder


@pytest.mark.process
@pytest.mark.timeout(240)
def test_the_demo_runs_from_the_wheel(installed: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "EVERRAM", "XDG", "VIRTUAL_ENV"))}
    where = "import everram.runtime, everram.examples as e; print(everram.runtime.__file__, e.__file__)"
    python = installed / "bin" / "python"
    found = subprocess.run(
        [python, "-c", where], capture_output=True, text=True, cwd=elsewhere, env=environment, check=True
    )
    assert str(ROOT) not in found.stdout
    assert found.stdout.count(str(installed)) == 2
    command = [installed / "bin" / "everram", "demo", "--json"]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=elsewhere, env=environment, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["fault"], report["ack"]) == ("machine-kill", "replicated")
    assert (report["invariant"], report["prefix_holds"]) == ("holds", True)
    assert (report["lost"], report["lost_unpromised"], report["duplicated"]) == (0, 0, 0)
    assert report["acknowledged_replicated"] >= 1000
    assert report["acknowledged_after_fault"] >= 200
    assert list(elsewhere.iterdir()) == []
