"""Virtual environments for the peers, whose pins do not go with ours."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from pipeline.errors import ConfigError

#: where they are kept from one run to the next
FOLDER = Path.home() / ".cache" / "pairmill" / "bench"

_VERSIONS = "import importlib.metadata as m, sys; print(*(m.version(n) for n in sys.argv[1:]))"


def ensure(folder: str | Path, packages: Sequence[str]) -> Path:
    """The Python of a virtual environment that holds `packages` (pip requirements); made if it is not there.

    Raises:
        ConfigError: pip cannot install them.
    """
    folder = Path(folder).absolute()
    python, mark = folder / "bin" / "python", folder / "packages.json"
    if mark.is_file() and json.loads(mark.read_text()) == list(packages):
        return python
    print(f"installing {', '.join(packages)} into {folder} ...", flush=True)
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
    pip = [str(python), "-m", "pip", "--quiet", "--disable-pip-version-check", "install", *packages]
    done = subprocess.run(pip, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise ConfigError(f"pip cannot install {', '.join(packages)}: {last}")
    mark.write_text(json.dumps(list(packages)))
    return python


def overlay(folder: str | Path, packages: Sequence[str]) -> Path:
    """A folder with `packages` alone, to stand before our own environment's on PYTHONPATH: for a peer that
    needs another version of one package, and is to have all the rest as we have it.

    Raises:
        ConfigError: pip cannot install them.
    """
    folder = Path(folder).absolute()
    mark = folder / "packages.json"
    if mark.is_file() and json.loads(mark.read_text()) == list(packages):
        return folder
    print(f"installing {', '.join(packages)} into {folder} ...", flush=True)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "install"]
    done = subprocess.run(
        [*pip, "--no-deps", "--upgrade", "--target", str(folder), *packages],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise ConfigError(f"pip cannot install {', '.join(packages)}: {last}")
    mark.write_text(json.dumps(list(packages)))
    return folder


def version(python: Path, package: str) -> str:
    """The installed version of a package in an environment."""
    done = subprocess.run([str(python), "-c", _VERSIONS, package], capture_output=True, text=True, check=True)
    return done.stdout.strip()
