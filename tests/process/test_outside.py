"""From outside: a gRPC client that knows nothing of everram, and the README's cells for a notebook, as they stand."""

from __future__ import annotations

import ast
import asyncio
import inspect
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CLIENT = ROOT / "examples" / "plain_grpc.py"
pytestmark = [pytest.mark.process, pytest.mark.timeout(120)]


def run(environment: dict[str, str], *words: str) -> str:
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    folder = tmp_path_factory.mktemp("outside")
    with tempfile.TemporaryDirectory(prefix="evr-") as runtime:
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("EVERRAM_DIR", "XDG"))}
        clean |= {"XDG_RUNTIME_DIR": runtime, "EVERRAM_DIR": str(folder / "cluster")}
        everram = (sys.executable, "-m", "everram.runtime.cli.main")
        try:
            run(clean, *everram, "up", "--hosts", "1", "-d")
            run(clean, *everram, "run", "-d", "--name", "sleeper", "--", "/bin/sleep", "600")
            yield clean
        finally:
            run(clean, *everram, "down", "--discard")


def test_a_plain_grpc_client(environment: dict[str, str]) -> None:
    modules = {
        node.names[0].name if isinstance(node, ast.Import) else str(node.module)
        for node in ast.walk(ast.parse(CLIENT.read_text()))
        if isinstance(node, ast.Import | ast.ImportFrom)
    }
    assert not any(module.startswith("everram") for module in modules)
    status = json.loads(run(environment, sys.executable, "-m", "everram.runtime.cli.main", "status", "--json"))
    said = run(environment, sys.executable, str(CLIENT), status["hosts"][0]["host_socket"])
    assert f"memory {status['hosts'][0]['memory_id']}" in said
    assert "guest sleeper is RUNNING in epoch 1" in said
    assert "an error says what is wrong: no guest nobody on host h1" in said


async def test_the_cells_of_a_notebook(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a notebook runs them: each awaits at the top level, on one loop, with what the ones before have left."""
    for name in ("EVERRAM_DIR", "XDG_RUNTIME_DIR"):
        monkeypatch.setenv(name, environment[name])
    (cells,) = re.findall(r"```python notebook\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    names: dict[str, object] = {}
    for cell in cells.split("# %%"):
        running = eval(compile(cell, "cell", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT), names)
        if inspect.isawaitable(running):
            await asyncio.wait_for(running, 30)
    assert capsys.readouterr().out.splitlines() == ["['h1']", "b'kept'", "sleeper h1 []"]
