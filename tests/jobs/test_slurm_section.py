"""What a chain says of its jobs on SLURM, read: options, who reads from whom, what a job is given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs import cli
from jobs.chain import load_chain
from jobs.slurm import lineage
from jobs.slurm.options import read_section
from jobs.words import part
from pipeline.errors import ConfigError


def test_who_reads_what_another_step_writes(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(
        yaml.safe_dump(
            {
                "root": str(tmp_path),
                "steps": {
                    "first": {"job": "discover", "input": "x.gz", "output": "{root}/a b/[c]"},
                    "fused": {
                        "job": "crawl", "input": "{root}/a b/[c]/part-*.parquet", "output": "{root}/images",
                        "fused": {"floor": "clip_score > 0", "output": "{root}/columns/clip"},
                    },
                    "score": {"columns": ["{root}/columns/*"], "output": "{root}/s"},
                    "beside": {"job": "score", "input": "{root}/images2", "output": "{root}/t"},
                    "model": {
                        "job": "train", "shards": "{root}/**/x.tar", "output": "{root}/r", "recipe": "clip",
                        "size": "tiny", "steps": 1,
                    },
                    "evaluate": {"model": "{root}/r/model", "shards": "{root}/images/../t/{0..3}.tar"},
                },
            },
            sort_keys=False,
        )
    )  # fmt: skip
    steps = load_chain(str(path))
    found = {s.name: [m.name for m in lineage.makers(s, steps[:n])] for n, s in enumerate(steps)}
    assert found == {
        "first": [], "fused": ["first"], "score": ["fused"], "beside": [],
        "model": ["first", "fused", "score", "beside"], "evaluate": ["beside", "model"],
    }  # fmt: skip


#: (verb, options) that reach every kind of value; what a job is given must read as what was submitted
ODD = "a'b\"c $(touch x) `y` ; %j [0-9] {z} # ü\t: - *"
ROUND = {
    "discover": {"input": [f"{ODD}/*.gz", "- x"], "block_domains": ODD, "output": ODD},
    "crawl": {"input": ODD, "output": f"out/{ODD}", "fetch": {"allow_private": ["127.0.0.1:80"]}},
    "score": {"input": ODD, "model": ODD, "output": "null", "workers": 3, "allow_failed": 2},
    "dedup": {"input": "~", "output": "0x1f", "overwrite": True},
    "balance": {"input": "1e3", "output": "yes"},
    "caption": {"input": ODD, "captioner": ODD, "output": ODD},
    "pack": {"input": ODD, "columns": [ODD, "1"], "where": "caption != '#: {x}\n'", "output": "24:00:00"},
    "export": {"input": ODD, "output": ODD},
    "train": {"shards": [ODD, "b"], "output": ODD, "recipe": "clip", "size": "tiny", "steps": 3},
    "evaluate": {"model": ODD, "shards": ODD, "mlm_words": {"colour": ["red", "no"]}, "output": ODD},
    "report": {"images": ODD, "columns": [ODD], "title": "null", "output": f"{ODD}.html"},
}


@pytest.mark.parametrize("verb", ROUND)
def test_what_a_job_is_given_is_what_was_parsed(verb: str, tmp_path: Path) -> None:
    chain = tmp_path / "c.yaml"
    chain.write_text(yaml.safe_dump({"steps": {"x": {"job": verb, **ROUND[verb]}}}))
    (step,) = load_chain(str(chain))
    folder = tmp_path / "run: {a}, 'b' #c"
    folder.mkdir()
    file = folder / "x.yaml"
    file.write_text(step.request.resolved)
    _, config, request = cli.parse_verb(verb, ["--config", str(file)])
    assert request.resolved == step.request.resolved
    assert request.options == step.request.options
    assert type(config) is type(step.config)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"dedup": {"time": yaml.safe_load("24:00:00")}}, "86400 must be text: .* put it in quotes"),
        ({"dedup": {"begin": yaml.safe_load("2026-01-01")}}, "put it in quotes"),
        ({"dedup": {"account": yaml.safe_load("017")}}, "put it in quotes"),
        ({"dedup": {"output": "x"}}, "unknown option 'output'; known: account, after, array"),
        ({"dedup": {"mem_per_gpu": "8G"}}, "dedup.mem-per-gpu: sbatch does not take it .*; use mem, of each"),
        ({"all": {"cpus-per-gpu": 8}}, "use cpus-per-task, of each node"),
        *(({"dedup": {name: "x"}}, "unknown option") for name in (
            "error", "wrap", "export", "job-name", "dependency", "chdir", "uid", "requeue", "signal"
        )),
        ({"dedup": {"partition": "a b"}}, "no value for sbatch's --partition"),
        ({"dedup": {"partition": "--wrap=x"}}, "no value"),
        ({"dedup": {"partition": "a\n"}}, "no value"),
        ({"dedup": {"mem": "lots"}}, "no value"),
        ({"dedup": {"mem": True}}, "must be text"),
        ({"dedup": {"nodelist": "/etc/passwd"}}, "no value"),
        ({"dedup": {"constraint": "$(x)"}}, "no value"),
        ({"dedup": {"array": "0-3"}}, "number of jobs"),
        ({"dedup": {"array": -1}}, "number of jobs"),
        ({"dedup": {"warn": 10**6}}, "0 to 65535"),
        ({"dedup": {"max_restarts": "x"}}, "number"),
        ({"dedup": {"after": ["pack"]}}, "no step before"),
        ({"dedup": {"after": 3}}, "list of step names"),
        ({"all": {"array": 4}}, "give it to single steps"),
        ({"dedupp": {"mem": 3}}, "no step 'dedupp'"),
        ({"dedup": 3}, "must be a mapping"),
        (["x"], "must be a mapping"),
    ],
)  # fmt: skip
def test_options_that_are_refused(section: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_section(section, ["dedup", "pack"], path="c.yaml")


def test_options_of_a_step_win_over_those_of_all_and_the_command_line_over_both() -> None:
    section = {
        "all": {"partition": ["cpu", "big"], "cpus_per_task": 4, "exclusive": True, "max_restarts": 2},
        "b.c": {"cpus-per-task": 8, "exclusive": False, "time": "10:00", "partition": None},
    }
    overrides = ["--all.qos=long", "--b.c.time=20:00", "--b.c.after=a", "--b.c.max-restarts=9"]
    found = read_section(section, ["a", "b.c"], overrides=overrides)
    assert found["a"].words == ["--partition=cpu,big", "--cpus-per-task=4", "--exclusive", "--qos=long"]
    assert found["b.c"].words == ["--cpus-per-task=8", "--qos=long", "--time=20:00"]
    assert (found["a"].after, found["b.c"].after) == (None, ("a",))
    assert (found["a"].max_restarts, found["b.c"].max_restarts) == (2, 9)


def test_words_for_steps_are_told_from_the_command() -> None:
    words = [
        "--crawl.x",
        "1",
        "c.yaml",
        "--from",
        "a.b",
        "--set.root=/x",
        "--dry-run",
        "--a.flag",
        "--",
        "--b.c",
    ]
    assert part(words) == (
        ["c.yaml", "--from", "a.b", "--dry-run", "--", "--b.c"],
        ["--crawl.x", "1", "--set.root=/x", "--a.flag"],
    )
