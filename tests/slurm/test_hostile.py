"""Hostile names, paths, options and values: refused with exit code 2, or passed on as they are; nothing that
they say is done.

Each case is submitted to a real SLURM by its own `pairmill submit`. What is accepted runs, and the job writes
down what has reached it: its arguments, its variables, the file of options it is given.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml

from jobs import cli
from jobs.slurm import books
from tests.slurm.cluster import Cluster

pytestmark = [pytest.mark.prove, pytest.mark.timeout(600)]

#: the file that an executed command would make, wherever it was executed
MARK = "pwned"
TEXTS = (
    "$(touch pwned)",
    "`touch pwned`",
    "x; touch pwned;",
    "x && touch pwned",
    "x | touch pwned",
    "x || touch pwned #",
    "x > pwned",
    "<(touch pwned)",
    "\ntouch pwned\n",
    "x\r\ntouch pwned",
    "x\n#SBATCH --wrap='touch pwned'",
    "'; touch pwned; '",
    '"; touch pwned; "',
    "'$(touch pwned)'",
    "\"$(touch pwned)\"",
    "\\$(touch pwned)",
    "${IFS}touch${IFS}pwned",
    "$HOME/$USER",
    "  spaces   in it  ",
    "a\tb",
    "it's \"quoted\" `twice`",
    "%j-%A_%a-%%-%x",
    "%s%n{roof}",
    "-x",
    "--wrap=touch pwned",
    "--config=/etc/passwd",
    "*",
    "[a-z]?{a,b}",
    "ünïcödé 漢字 🙂",
    "#!/bin/sh",
    "!!:$0",
    "\x1b[31mred",
    "!!python/object/apply:os.system [touch pwned]",
    "{a: [b, *c, &d e]} # f",
)  # fmt: skip
#: options of SLURM that take text; each hostile text is tried with one of them
OPTIONS = ("partition", "account", "comment", "constraint", "mail-user", "nodelist", "gres", "begin", "time")

SCRIPT = """\
#!/bin/bash
#SBATCH --export=PATH,HOME,PAIRMILL_RUN_DIR,PAIRMILL_STEP,PAIRMILL_MAX_RESTARTS
seen="$PAIRMILL_RUN_DIR/seen"
mkdir -p "$seen"
printf '%s\\0' "$PAIRMILL_RUN_DIR" "$PAIRMILL_STEP" "$PWD" "$@" > "$seen/words"
cp -- "$2" "$seen/config"
echo this was said
"""


@dataclass(frozen=True, kw_only=True)
class Case:
    """A hostile text at one place.

    Attributes:
        place: where it stands.
        text: what.
        words: of the command line, behind the chain's path.
        chain: the chain's file.
        name: of that file.
        run: the run folder that follows.
        expected: option -> value that the job must be given.
    """

    place: str
    text: str
    words: tuple[str, ...] = ()
    chain: dict = field(default_factory=dict)
    name: str = "c.yaml"
    run: str = "root/slurm"
    expected: dict[str, str] = field(default_factory=dict)


def chain(*, step: str = "report", root: str = "root", slurm: dict | None = None, **options: str) -> dict:
    found = {"job": "report", "images": "{root}/images", "output": "{root}/x.html", **options}
    return {"root": root, "steps": {step: found}, **({"slurm": slurm} if slurm else {})}


def as_step_name(number: int, text: str) -> Case:
    return Case(place="step", text=text, chain=chain(step=text))


def as_root(number: int, text: str) -> Case:
    return Case(place="root", text=text, chain=chain(root=text), run=f"{text}/slurm")


def as_run_folder(number: int, text: str) -> Case:
    return Case(place="run_dir", text=text, chain=chain(), words=(f"--run_dir={text}",), run=text)


def as_variable(number: int, text: str) -> Case:
    words = (f"--set.word={text}",) if number % 2 else ("--set.word", text)
    return Case(
        place="variable", text=text, chain=chain(title="{word}"), words=words, expected={"title": text}
    )


def as_option(number: int, text: str) -> Case:
    words = (f"--report.title={text}",) if number % 2 else ("--report.attribution", text)
    name = "title" if number % 2 else "attribution"
    return Case(place="option", text=text, chain=chain(), words=words, expected={name: text})


def as_value(number: int, text: str) -> Case:
    return Case(place="value", text=text, chain=chain(title=text), expected={"title": text})


def as_slurm_option(number: int, text: str) -> Case:
    option = OPTIONS[number % len(OPTIONS)]
    if number % 2:
        return Case(place=option, text=text, chain=chain(slurm={"report": {option: text}}))
    return Case(place=option, text=text, chain=chain(), words=(f"--slurm.all.{option}={text}",))


def as_file_name(number: int, text: str) -> Case:
    return Case(place="file", text=text, chain=chain(), name=f"{text.replace('/', '_')}.yaml")


PLACES: Sequence[Callable[[int, str], Case]] = (
    as_step_name, as_root, as_run_folder, as_variable, as_option, as_value, as_slurm_option, as_file_name,
)  # fmt: skip
CASES = [place(number, text) for number, text in enumerate(TEXTS) for place in PLACES]


@pytest.fixture
def scripts(tmp_path: Path) -> Path:
    folder = tmp_path / "it's $(touch pwned) %j"
    folder.mkdir()
    (folder / "report.sbatch").write_text(SCRIPT)
    return folder


@pytest.fixture
def marks(tmp_path: Path) -> Callable[[], list[Path]]:
    """Files that commands would have made: below the test's folder, or where jobs and shells begin."""
    others = [Path(p) / MARK for p in (Path.home(), "/", "/tmp", "/var/tmp", Path.cwd())]
    assert not [p for p in others if p.exists()]
    return lambda: [*(p for p in tmp_path.rglob(MARK)), *(p for p in others if p.exists())]


Marks = Callable[[], list[Path]]


def submit(case: Case, place: Path, scripts: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    place.mkdir()
    monkeypatch.chdir(place)
    Path(case.name).write_text(yaml.safe_dump(case.chain, allow_unicode=True), encoding="utf-8")
    words = ["--", case.name] if case.name.startswith("-") else [case.name]
    try:
        return cli.main(["submit", *case.words, f"--scripts={scripts}", *words])
    except SystemExit as end:  # argparse's way
        return int(end.code or 0)


def try_all(
    cases: Sequence[Case],
    slurm: Cluster,
    tmp_path: Path,
    scripts: Path,
    marks: Marks,
    monkeypatch: pytest.MonkeyPatch,
) -> tuple[int, int]:
    """Submits all, then looks what has reached the jobs; (refused, run)."""
    accepted: list[tuple[Case, Path]] = []
    for number, case in enumerate(cases):
        place = tmp_path / str(number)
        code = submit(case, place, scripts, monkeypatch)
        assert code in (0, 2), (case, code)
        if code == 0:
            accepted.append((case, place))
    monkeypatch.chdir(tmp_path)
    slurm.until(slurm.idle, 300, "all jobs to end")
    for case, place in accepted:
        check(case, place, slurm)
    assert marks() == []
    return len(cases) - len(accepted), len(accepted)


def check(case: Case, place: Path, slurm: Cluster) -> None:
    run = place / case.run
    (job,) = books.read_submitted(run)
    assert slurm.facts(job.job)["JobState"] == "COMPLETED", case
    given = run / "steps/report.yaml"
    words = (run / "seen/words").read_bytes().decode().split("\0")[:-1]
    assert words == [str(run), "report", str(place), "--config", str(given)], case
    assert (run / "seen/config").read_bytes() == given.read_bytes(), case
    assert (run / f"logs/report-{job.job}.log").read_text() == "this was said\n", case
    _, config, _ = cli.parse_verb("report", ["--config", str(given)])
    root = place / (case.text if case.place == "root" else "root")
    assert config.output == os.path.normpath(f"{root}/x.html"), case
    assert {name: getattr(config, name) for name in case.expected} == case.expected, case


@pytest.mark.prove_ci
def test_a_tenth_of_all(
    slurm: Cluster, tmp_path: Path, scripts: Path, marks: Marks, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused, run = try_all(CASES[::11], slurm, tmp_path, scripts, marks, monkeypatch)
    assert refused >= 5
    assert run >= 8


def test_all(
    slurm: Cluster, tmp_path: Path, scripts: Path, marks: Marks, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len(CASES) >= 200
    refused, run = try_all(CASES, slurm, tmp_path, scripts, marks, monkeypatch)
    print(f"{len(CASES)} cases: {refused} refused, {run} run")
    assert run >= 100


@pytest.mark.parametrize("text", ["it's $(touch pwned) `x` %j 'a' \"b\" ; ü"])
def test_our_own_scripts_at_odd_places(
    slurm: Cluster, tmp_path: Path, marks: Marks, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    """A report over a folder of that name, by `pairmill batch`, with a run folder of that name."""
    from tests.pipeline.folders import crawled, make_images

    root = tmp_path / text
    make_images(root / "images", {0: [crawled(0, i) for i in range(2)]})
    monkeypatch.chdir(tmp_path)
    Path("c.yaml").write_text(yaml.safe_dump(chain(root=str(root)), allow_unicode=True))
    size = ["--slurm.all.cpus-per-task=1", "--slurm.all.mem=1G"]
    assert cli.main(["submit", "c.yaml", f"--report.title={text}", *size]) == 0
    (job,) = books.read_submitted(root / "slurm")
    ended = slurm.wait(job.job)
    log = (root / f"slurm/logs/report-{job.job}.log").read_text()
    assert ended["JobState"] == "COMPLETED", log
    assert (root / "x.html").stat().st_size > 10_000
    assert [end.code for end in books.read_ends(root / "slurm", str(job.job))] == [0]
    assert marks() == []
