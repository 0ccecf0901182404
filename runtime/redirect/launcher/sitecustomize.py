"""Run by Python at its start, before the program: redirects its files, then runs the computer's own `sitecustomize`."""

import importlib.machinery
import importlib.util
import os
import sys

HERE = os.path.dirname(os.path.abspath(__file__))  # noqa: PTH100, PTH120 - pathlib would be imported into every program


def _redirect() -> None:
    prefix = os.environ.get("EVERRAM_FS_PREFIX", "")
    if not prefix:
        return
    try:
        from everram.runtime.redirect.opens import install
    except ImportError as error:
        sys.stderr.write(
            f"everram fs exec: {sys.executable} has no everram ({error}): use the Python that everram is installed in\n"
        )
        sys.stderr.flush()
        os._exit(1)
    install(prefix)


def _run_next() -> None:
    """There can be one `sitecustomize` only, and this one took the place of another."""
    others = [folder for folder in sys.path if folder != HERE]
    spec = importlib.machinery.PathFinder.find_spec("sitecustomize", others)
    if spec is not None and spec.loader is not None:
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


_redirect()
_run_next()
