"""`pairmill evaluate --model runs/albef --shards held_out --mlm_words words.yaml`: what a model can do.

Retrieval in both directions over a fixed pool of pictures, and accuracy on masked words with and without
the picture. Writes `retrieval.json`, `mlm.json` and the resolved configuration.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from jobs.verb import Request, Verb
from models.training.progress import Progress
from models.training.rundir import write_atomic
from pipeline.errors import ConfigError, InputError

if TYPE_CHECKING:
    from models.evaluation.pool import Pool
    from models.inference.load import LoadedModel
    from models.training.table import SampleTable

log = logging.getLogger(__name__)


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
    results = run_evaluation(config, folder, words)
    output.mkdir(parents=True, exist_ok=True)
    for name, result in results.items():
        write_atomic(output / f"{name}.json", json.dumps(result, indent=1) + "\n")
    write_atomic(output / "config.yaml", yaml.safe_dump(_plain(asdict(config)), sort_keys=False))
    write_atomic(output / "evaluation.json", json.dumps(mark, indent=1) + "\n")
    print(summary(results), file=sys.stderr)
    return 0


def run_evaluation(config: EvaluateConfig, folder: Path, words: dict[str, list[str]]) -> dict[str, Any]:
    """The results by name, as JSON values."""
    # before torch is imported: waiting threads that spin make a busy machine four times slower
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from models.evaluation.mlm import evaluate_mlm
    from models.evaluation.retrieval import evaluate_retrieval
    from models.inference.load import load_exported
    from models.training.stopping import TrainingError
    from models.training.table import build_table, find_shards

    try:
        loaded = load_exported(folder, device=config.device)
        table = build_table(find_shards(config.shards))
    except TrainingError as error:
        raise InputError(str(error)) from error
    except ValueError as error:
        raise ConfigError(str(error)) from error
    pool, facts = build_pool(config, table, loaded)
    model: Any = loaded.model
    show = _Shown("evaluate")
    results: dict[str, Any] = {}
    retrieval = evaluate_retrieval(
        model, pool, top_k=config.top_k, seed=config.seed, device=loaded.device, report=show
    )
    results["retrieval"] = {**retrieval.to_json(), **facts}
    if words:
        try:
            mlm = evaluate_mlm(
                model, pool, tokenizer=loaded.tokenizer, words=words, seeds=tuple(config.seeds),
                device=loaded.device, report=show,
            )  # fmt: skip
        except ValueError as error:
            raise ConfigError(f"mlm_words: {error}") from error
        results["mlm"] = {**mlm.to_json(), **facts}
    show.close()
    return results


def build_pool(
    config: EvaluateConfig, table: SampleTable, loaded: LoadedModel
) -> tuple[Pool, dict[str, Any]]:
    """The first `pool` readable pictures of a seeded order, each with all its captions in the shards.

    Raises:
        ConfigError: fewer pictures than asked for.
    """
    import numpy as np
    import torch

    from models.evaluation.pool import Pool
    from models.images import CorruptImageError, decode

    wanted = config.pool or len(table)
    place: dict[int, int] = {}
    pixels, captions, owner = [], [], []
    corrupt = 0
    show = _Shown("evaluate")
    for index in np.random.default_rng(config.seed).permutation(len(table)):
        try:
            sample = table.read(int(index))
            if sample.image_id not in place:
                if len(place) == wanted:
                    continue
                pixels.append(loaded.exported.transform(decode(sample.image)))
                place[sample.image_id] = len(place)
                show("reading the pool", len(place), wanted)
        except (CorruptImageError, ValueError) as error:
            corrupt += 1
            log.warning("sample %s cannot be read (%s); left out of the pool", table.keys[index], error)
            continue
        captions.append(sample.caption)
        owner.append(place[sample.image_id])
    show.close()
    if len(place) < wanted:
        raise ConfigError(
            f"pool {wanted}: the shards hold {len(place)} readable pictures; "
            f"add shards, or pass --pool {len(place)}"
        )
    ids_PT, mask_PT = loaded.tokenizer.encode(captions, loaded.exported.max_text_tokens)
    pool = Pool(
        images=[
            torch.stack(pixels[i : i + config.batch_size]) for i in range(0, len(pixels), config.batch_size)
        ],
        pictures=len(place),
        text_ids_PT=ids_PT,
        text_mask_PT=mask_PT,
        text_image_P=torch.tensor(owner),
    )
    return pool, {"seed": config.seed, "corrupt": corrupt, "training": loaded.exported.training}


class _Shown:
    """Draws the progress of one piece of work after another."""

    def __init__(self, label: str) -> None:
        self.label = label
        self.what, self.done = "", 0
        self.line: Progress | None = None

    def __call__(self, what: str, done: int, total: int) -> None:
        if what != self.what:
            self.close()
            self.what, self.line = what, Progress(f"{self.label} {what}", total)
        assert self.line is not None
        self.done = done
        self.line.update(done)

    def close(self) -> None:
        if self.line is not None:
            self.line.close(self.done)
        self.what, self.line = "", None


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
