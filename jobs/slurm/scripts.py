"""Where the batch scripts lie: `slurm/` beside the packages, or share/pairmill/slurm where installed."""

from __future__ import annotations

import sysconfig
from pathlib import Path

from pipeline.errors import ConfigError

#: what marks the folder as ours: another package may be called slurm
MARK = "environment.sh"
SUFFIX = ".sbatch"


def scripts_folder(given: str | None = None) -> Path:
    """The folder with a script a verb; `given` wins.

    Raises:
        ConfigError: there is none.
    """
    if given is not None:
        folder = Path(given).absolute()
        if not folder.is_dir():
            raise ConfigError(f"--scripts {given!r} is no folder; give the one with the batch scripts")
        return folder
    beside = Path(__file__).resolve().parents[2] / "slurm"
    shared = Path(sysconfig.get_path("data")) / "share" / "pairmill" / "slurm"
    for folder in (beside, shared):
        if (folder / MARK).is_file():
            return folder
    raise ConfigError(
        f"no batch scripts in {beside} or {shared}; give the folder that holds them as --scripts FOLDER"
    )


def script_for(verb: str, folder: Path) -> Path:
    """The batch script of a command.

    Raises:
        ConfigError: the folder has none.
    """
    path = folder / f"{verb}{SUFFIX}"
    if not path.is_file():
        known = ", ".join(sorted(p.name.removesuffix(SUFFIX) for p in folder.glob(f"*{SUFFIX}")))
        raise ConfigError(f"{folder} has no {path.name}; it has scripts for: {known or 'nothing'}")
    return path
