"""`pairmill evaluate --model runs/albef --shards held_out --mlm_words words.yaml`: what a model can do.

Retrieval in both directions over a fixed pool of pictures, and accuracy on masked words with and without
the picture. Writes `retrieval.json`, `mlm.json` and the resolved configuration. This file imports no torch,
so that results that stand are recognised at once; the work is in `jobs.evaluation`.
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
from pipeline import storage
from pipeline.errors import ConfigError


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
        seeds: each draws which words are masked and which pictures are swapped.
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
    output = Path(config.output) if config.output else folder.parent / "eval"
    words = read_words(config.mlm_words)
    mark = evaluation_mark(config, folder, words)
    if not overwrite and _is_done(output, mark, with_words=bool(words)):
        print(
            f"evaluate: {output} holds the results of this evaluation already, nothing to do", file=sys.stderr
        )
        return 0
    # before torch is imported: waiting threads that spin make a busy machine several times slower
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from jobs.evaluation import run_evaluation

    results = run_evaluation(config, folder, words)
    output.mkdir(parents=True, exist_ok=True)
    for name, result in results.items():
        storage.write_bytes(str(output / f"{name}.json"), (json.dumps(result, indent=1) + "\n").encode())
    storage.write_bytes(
        str(output / "config.yaml"), (yaml.safe_dump(_plain(asdict(config)), sort_keys=False)).encode()
    )
    storage.write_bytes(str(output / "evaluation.json"), (json.dumps(mark, indent=1) + "\n").encode())
    print(summary(results), file=sys.stderr)
    return 0


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
            "options": [config.pool, config.top_k, list(config.seeds), config.seed],
            "words": words,
        }
    )


def _is_done(output: Path, mark: dict[str, Any], *, with_words: bool) -> bool:
    path = output / "evaluation.json"
    files = ["retrieval.json"] + (["mlm.json"] if with_words else [])
    if not path.is_file() or not all((output / f).is_file() for f in files):
        return False
    return json.loads(path.read_text(encoding="utf-8")) == mark


def summary(results: dict[str, Any]) -> str:
    """A few lines for a person."""
    r = results["retrieval"]
    pool, ks = r["pool"], ("r1", "r5", "r10")

    def row(name: str, values: dict[str, float]) -> str:
        return f"  {name:<22}" + "  ".join(f"{k.upper()} {100 * values[k]:5.1f}" for k in ks)

    lines = [f"retrieval over {pool['pictures']} pictures and {pool['captions']} captions, percent"]
    lines += [row("picture -> text", r["tr"]), row("text -> picture", r["ir"]), row("chance", r["chance"])]
    if "mlm" in results:
        accuracy = results["mlm"]["accuracy"]
        lines.append("masked words, percent right")
        lines += [f"  {c.replace('_', ' '):<22}{100 * accuracy[c]['all']['mean']:5.1f}" for c in accuracy]
    return "\n".join(lines)


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value))


def run(config: EvaluateConfig, request: Request) -> int:
    return evaluate(config, overwrite=request.options.overwrite)


VERB = Verb(config=EvaluateConfig, run=run)

if __name__ == "__main__":
    from jobs.cli import main

    sys.exit(main(["evaluate", *sys.argv[1:]]))
