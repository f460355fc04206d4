"""`pairmill train --config x.yaml --zero.stage 2 --processes 2`: trains a recipe on shards.

Starts its own processes on this machine; under torchrun (WORLD_SIZE is set) it is one of them. A run that
is finished is recognised without importing torch. Exit codes: 0 done, 1 failed, 2 bad configuration, 75
stopped by a signal or a STOP file, saved, start again to go on.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from jobs.verb import Request, Verb
from models.training import config as train_config
from models.training import verdicts
from models.training.config import TrainConfig
from models.training.launch import launch
from models.training.rundir import is_finished, locked, prepare_run, refuse_another
from models.training.stopping import EXIT_CONFIG, EXIT_DONE
from models.training.table import find_shards
from pipeline import manifest, pulse, storage
from pipeline.errors import ConfigError
from pipeline.inputs import file_fingerprint
from pipeline.shards.format import shard_name
from pipeline.verify import verify

#: set by torchrun for its processes
UNDER_TORCHRUN = "TORCHELASTIC_RUN_ID"


def train(config: TrainConfig, *, overwrite: bool = False) -> int:
    """Trains to the end, or goes on from the last checkpoint; returns the exit code.

    Args:
        overwrite: where the run folder holds a run of another configuration, start it anew.

    Raises:
        ConfigError: an impossible option, no shards, or a run folder of another configuration.
    """
    try:
        train_config.check(config)
        inputs = input_fingerprints(config)
        if os.environ.get("RANK", "0") != "0":
            # the first process, which alone writes there, does not wait for others when it is finished
            return EXIT_DONE if is_finished(config, inputs=inputs) else _train_here(config)
        with locked(Path(config.output)):
            if prepare_run(config, inputs=inputs, overwrite=overwrite):
                print(f"train: {config.output} is finished already, nothing to do", file=sys.stderr)
                return EXIT_DONE
            pulse.sweep(config.output)
            with pulse.beating(config.output, "train"):
                return _train_here(config) if "WORLD_SIZE" in os.environ else launch(config)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def input_fingerprints(config: TrainConfig) -> list[str]:
    """Marks of the shards of all datasets, in order; raises as `shard_fingerprints` does."""
    return [m for d in train_config.datasets(config) for m in shard_fingerprints(d.shards, kind=d.kind)]


def is_done(config: TrainConfig, *, overwrite: bool = False) -> bool:
    """Whether the run folder holds this very run, finished. Reads only, and imports no torch.

    Raises:
        ConfigError: an impossible option, no shards, or a run folder of another configuration, unless
            `overwrite` says that it may go.
    """
    try:
        train_config.check(config)
        inputs = input_fingerprints(config)
        refuse_another(config, inputs=inputs, overwrite=overwrite)
        return is_finished(config, inputs=inputs)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _train_here(config: TrainConfig) -> int:
    """As one of torchrun's processes, which ends with torchrun: else it would go on and hold the run."""
    from models.training.stopping import die_with_parent
    from models.training.worker import train_here

    if UNDER_TORCHRUN in os.environ:
        die_with_parent(os.getppid())
    return train_here(config)


def shard_fingerprints(shards: str | Sequence[str], *, kind: str = "pairs") -> list[str]:
    """One mark of the content per shard: from our manifests where there are some, so that a shard redone to
    the same bytes is the same input; otherwise name, size and time of change.

    Raises:
        ValueError: no shards there; or a view, whose images have changed since it was made.
    """
    found = find_shards(shards, kind=kind)
    known: dict[str, dict[str, str]] = {}
    marks = []
    for url in found:
        folder = url.rpartition("/")[0] or "."
        if folder not in known:
            known[folder] = {shard_name(d.number): d.content for d in manifest.list_manifests(folder)}
            if url.endswith(".parquet"):
                _check_view(folder)
        name = storage.basename(url)
        content = known[folder].get(name.rpartition(".")[0])
        if content is None:
            info = next(iter(storage.find(url)))
            content = file_fingerprint(info)
        marks.append(f"{name}:{content}")
    return marks


def _check_view(folder: str) -> None:
    """Raises ConfigError when pictures of a view are not what they were when it was made."""
    report = verify(folder, quick=True)
    if report.damaged:
        wrong = report.damaged[0].wrong[0]
        raise ConfigError(f"{folder}: {len(report.damaged)} of {report.units} shards cannot be read: {wrong}")


def run(config: TrainConfig, request: Request) -> int:
    try:
        code = train(config, overwrite=request.options.overwrite)
    except ConfigError as error:
        verdicts.tell(EXIT_CONFIG, str(error))
        raise
    verdicts.tell(code)
    if UNDER_TORCHRUN in os.environ:
        sys.stdout.flush()
        sys.stderr.flush()
        # without the interpreter's teardown: it takes seconds, which a job that is cancelled may not have
        os._exit(verdicts.exit_code(code))
    return verdicts.exit_code(code)


#: published settings, for `--config NAME`
CONFIGS = Path(train_config.__file__).resolve().parents[1] / "recipes" / "configs"

VERB = Verb(config=TrainConfig, run=run, configs=CONFIGS)

if __name__ == "__main__":
    from jobs.cli import entry

    entry("train")
