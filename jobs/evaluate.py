"""`pairmill evaluate --model runs/albef --shards held_out --mlm_words words.yaml`: what a model can do.

Retrieval in both directions over a fixed pool of pictures; whether pairs are told from mismatches; masked
words; captions: what the model offers. Each with the picture, with the picture withheld, and with a wrong
one. Writes `retrieval.json`, `itm.json`, `mlm.json`, `captions.json`, `summary.txt` and the resolved
configuration. This file imports no torch, so that results that stand are recognised at once; the work is in
`jobs.evaluation`.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml

from jobs.verb import Request, Verb
from models.evaluation.summary import summary
from pipeline import storage
from pipeline.errors import ConfigError

#: what may be written, and the file that tells which results stand
RESULTS = ("retrieval", "itm", "mlm", "captions")
MARK = "evaluation.json"


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """An evaluation.

    Attributes:
        model: run folder of `train`, or its model/ folder.
        shards: folder, glob or URL of the shards with held-out pairs, or a list of these.
        output: where the results go; by default eval/ in the run folder.
        pool: number of pictures in the pool, exactly; 0: all of them.
        top_k: candidates per query that the matching head ranks anew; 0: ranks by features alone.
        mlm_words: YAML or JSON file of groups and words (`colour: [red, blue]`), or this mapping itself;
            empty: no test of masked words.
        caption_pictures: for how many pictures of the pool captions are written, where the model writes
            captions; 0: none.
        seeds: each draws which words are masked, the wrong pictures, and which pictures are swapped.
        seed: of the choice of the pool.
        batch_size: pictures encoded at once.
        device: cpu, cuda, ...; by default a GPU where there is one.
    """

    model: str
    shards: str | list[str]
    output: str | None = None
    pool: int = 1000
    top_k: int = 16
    mlm_words: str | dict[str, list[str]] | None = None
    caption_pictures: int = 500
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    seed: int = 0
    batch_size: int = 64
    device: str | None = None


def evaluate(config: EvaluateConfig, *, overwrite: bool = False) -> int:
    """Evaluates and writes the results; returns 0. Results of the same evaluation are left as they are.

    Raises:
        ConfigError: no such model or shards, too few pictures for the pool, an unreadable word list.
        InputError: a damaged shard.
    """
    folder = model_folder(config.model)
    output = results_folder(config, folder)
    words = read_words(config.mlm_words)
    mark = evaluation_mark(config, folder, words)
    if not overwrite and _stands(output, mark):
        print(
            f"evaluate: {output} holds the results of this evaluation already, nothing to do", file=sys.stderr
        )
        return 0
    (output / MARK).unlink(missing_ok=True)
    # before torch is imported: waiting threads that spin make a busy machine several times slower
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from jobs.evaluation import run_evaluation

    results = run_evaluation(config, folder, words)
    output.mkdir(parents=True, exist_ok=True)
    for name, result in results.items():
        storage.write_bytes(str(output / f"{name}.json"), (json.dumps(result, indent=1) + "\n").encode())
    for name in sorted(set(RESULTS) - results.keys()):
        (output / f"{name}.json").unlink(missing_ok=True)  # of an earlier evaluation
    storage.write_bytes(str(output / "summary.txt"), (summary(results) + "\n").encode())
    storage.write_bytes(
        str(output / "config.yaml"), (yaml.safe_dump(_plain(asdict(config)), sort_keys=False)).encode()
    )
    mark["results"] = sorted(results)
    storage.write_bytes(str(output / MARK), (json.dumps(mark, indent=1) + "\n").encode())
    print(summary(results), file=sys.stderr)
    return 0


def is_done(config: EvaluateConfig) -> bool:
    """Whether the results of this very evaluation stand. Reads only, and imports no torch.

    Raises:
        ConfigError: no such model or shards, an unreadable word list.
    """
    folder = model_folder(config.model)
    mark = evaluation_mark(config, folder, read_words(config.mlm_words))
    return _stands(results_folder(config, folder), mark)


def results_folder(config: EvaluateConfig, model: Path) -> Path:
    """Where the results go; `model` is the folder of the model."""
    return Path(config.output) if config.output else model.parent / "eval"


def model_folder(given: str) -> Path:
    """The model/ folder of a run folder, or the folder itself.

    Raises:
        ConfigError: there is none.
    """
    for folder in (Path(given) / "model", Path(given)):
        if (folder / "config.json").is_file() and (folder / "model.safetensors").is_file():
            return folder
    raise ConfigError(
        f"model {given!r} holds no finished model; give a run folder whose training has finished"
    )


def read_words(given: str | dict[str, list[str]] | None) -> dict[str, list[str]]:
    """Groups of words, from a file or as they are.

    Raises:
        ConfigError: no such file, or not groups of words.
    """
    if not given:
        return {}
    words: Any = given
    if isinstance(given, str):
        if not Path(given).is_file():
            raise ConfigError(f"mlm_words {given!r} does not exist; give a YAML file of groups and words")
        words = yaml.safe_load(Path(given).read_text(encoding="utf-8"))
    good = isinstance(words, dict) and all(
        isinstance(v, list) and v and all(isinstance(w, str) for w in v) for v in words.values()
    )
    if not good:
        raise ConfigError(f"mlm_words {given!r}: needs groups of words, such as `colour: [red, blue]`")
    return {str(group): list(members) for group, members in words.items()}


def evaluation_mark(config: EvaluateConfig, folder: Path, words: dict[str, list[str]]) -> dict[str, Any]:
    """What the results depend on, to know them again."""
    from jobs.train import shard_fingerprints

    stat = (folder / "model.safetensors").stat()
    try:
        shards = shard_fingerprints(config.shards)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    return _plain(
        {
            "model": [str(folder), stat.st_size, stat.st_mtime_ns],
            "shards": shards,
            "options": [config.pool, config.top_k, list(config.seeds), config.seed, config.caption_pictures],
            "words": words,
        }
    )


def _stands(output: Path, mark: dict[str, Any]) -> bool:
    path = output / MARK
    if not path.is_file():
        return False
    found = json.loads(path.read_text(encoding="utf-8"))
    files = found.pop("results", [])
    return bool(files) and found == mark and all((output / f"{name}.json").is_file() for name in files)


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value))


def run(config: EvaluateConfig, request: Request) -> int:
    return evaluate(config, overwrite=request.options.overwrite)


VERB = Verb(config=EvaluateConfig, run=run)

if __name__ == "__main__":
    from jobs.cli import entry

    entry("evaluate")
