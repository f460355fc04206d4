"""The command line: options, errors, exit codes, chains."""

from __future__ import annotations

import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml

from jobs import cli
from jobs.chain import choose, load_chain, run_chain
from jobs.progress_table import render
from jobs.status import collect
from jobs.verb import Request, Verb
from jobs.words import split_overrides
from pipeline import manifest
from pipeline.errors import ConfigError
from pipeline.settings import operational
from tests.pipeline.toy_stage import ToyConfig, ToyStage


@dataclass(frozen=True, kw_only=True)
class Nested:
    """Nested options.

    Attributes:
        width: a width in pixels.
    """

    width: int = 3


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of a verb made for the tests.

    Attributes:
        input: where to read.
        factor: a factor.
        nested: more.
        flag: a switch.
    """

    input: str = operational()
    factor: int = 2
    nested: Nested = field(default_factory=Nested)
    flag: bool = False


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Options, Request]]:
    """Makes `discover` a verb that notes its config, and `pack` one that runs the toy stage."""
    noted: list[tuple[Options, Request]] = []

    def run(config: Options, request: Request) -> int:
        noted.append((config, request))
        return config.factor if config.factor > 2 else 0

    def pack(config: ToyConfig, request: Request) -> int:
        from jobs.stages import run_stages

        return run_stages([(ToyStage(config), request.output)], request)

    import jobs.discover
    import jobs.pack

    monkeypatch.setattr(jobs.discover, "VERB", Verb(config=Options, run=run, stage=True))
    monkeypatch.setattr(jobs.pack, "VERB", Verb(config=ToyConfig, run=pack, stage=True))
    return noted


def test_options_nested_dashes_and_flags(calls: list[tuple[Options, Request]]) -> None:
    argv = ["discover", "--input", "x", "--output", "o", "--nested.width=5", "--allow-failed", "3", "--flag"]
    assert cli.main([*argv, "--ray.address", "auto", "--overwrite"]) == 0
    config, request = calls[0]
    assert config == Options(input="x", nested=Nested(width=5), flag=True)
    assert (request.output, request.options.allow_failed, request.options.overwrite) == ("o", 3, True)
    assert request.options.ray.address == "auto"
    assert yaml.safe_load(request.resolved)["nested"] == {"width": 5}


def test_config_file_then_overrides(calls: list[tuple[Options, Request]], tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("input: from-file\noutput: o\nfactor: 1\nnested: {width: 9}\n")
    assert cli.main(["discover", "--config", str(path), "--factor", "2"]) == 0
    assert calls[0][0] == Options(input="from-file", factor=2, nested=Nested(width=9))


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["discover", "--inptu", "x", "--output", "o"], "inptu"),
        (["discover", "--output", "o"], "input"),
        (["discover", "--input", "x"], "output"),
        (["discover", "--input", "x", "--output", "o", "--factor", "many"], "factor"),
        (["discover", "--input", "x", "--output", "o", "--config", "/missing.yaml"], "missing.yaml"),
        (["discver"], "discver"),
        (["run", "missing.yaml"], "missing.yaml"),
    ],
)
def test_bad_configuration_exits_2_and_names_it(
    calls: list[tuple[Options, Request]], argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(argv) == 2
    assert message in capsys.readouterr().err
    assert not calls


def test_a_folder_that_hides_our_package_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "pipeline").mkdir()
    (tmp_path / "pipeline/__init__.py").touch()
    from_here = subprocess.run(
        [sys.executable, "-m", "jobs.discover", "--help"], cwd=tmp_path, capture_output=True, text=True
    )
    assert from_here.returncode == 2
    assert str(tmp_path) in from_here.stderr
    assert "another folder" in from_here.stderr


def _signalled(before: str, *words: str) -> subprocess.CompletedProcess[str]:
    """A command of its own, after some lines of Python."""
    # a shell without job control has what it starts in the background ignore Ctrl-C
    listening = "import os, signal, sys\nsignal.signal(signal.SIGINT, signal.default_int_handler)"
    script = f"{listening}\n{before}\nfrom jobs.cli import entry\nentry()"
    return subprocess.run(
        [sys.executable, "-c", script, *words], cwd=Path(__file__).parents[2], capture_output=True, text=True
    )


@pytest.mark.parametrize(("words", "code"), [(["--version"], 0), (["nothing"], 2)])
def test_a_signal_while_python_ends_does_not_change_the_exit_code(words: list[str], code: int) -> None:
    late = "import atexit\natexit.register(lambda: [os.kill(os.getpid(), s) for s in ({}, {})])"
    done = _signalled(late.format(int(signal.SIGUSR1), int(signal.SIGINT)), *words)
    assert done.returncode == code
    assert "KeyboardInterrupt" not in done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_to_what_does_not_listen_stops_it(number: int) -> None:
    early = "import jobs.status\njobs.status.main = lambda words: os.kill(os.getpid(), {})"
    done = _signalled(early.format(int(number)), "status", "anything")
    assert (done.returncode, done.stderr) == (75, "pairmill status: stopped\n")


def test_a_signal_that_a_batch_script_ignores_stays_ignored() -> None:
    ignored = "signal.signal(signal.SIGUSR1, signal.SIG_IGN)\nimport jobs.status\n"
    early = f"{ignored}jobs.status.main = lambda words: os.kill(os.getpid(), {int(signal.SIGUSR1)}) or 0"
    assert _signalled(early, "status", "anything").returncode == 0


def test_a_signal_to_a_copy_of_the_process_ends_that_copy() -> None:
    copied = """
def copied(words):
    process = os.fork()
    if not process:
        signal.raise_signal(signal.SIGTERM)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
import jobs.status
jobs.status.main = copied
"""
    done = _signalled(copied, "status", "anything")
    assert (done.returncode, done.stderr) == (256 - signal.SIGTERM, "")


CHAIN = """
root: {root}
vars: {{size: "2"}}
steps:
  first: {{job: discover, input: "{{root}}/in", output: "{{root}}/first", factor: "{{size}}"}}
  pack: {{output: "{{root}}/out", names: [a, b]}}
  last: {{job: discover, input: "{{root}}/out", output: "{{root}}/last"}}
"""


def _chain(tmp_path: Path) -> str:
    path = tmp_path / "chain.yaml"
    path.write_text(CHAIN.format(root=tmp_path))
    return str(path)


def test_chain_runs_from_only_and_resumes(
    calls: list[tuple[Options, Request]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = _chain(tmp_path)
    assert cli.main(["run", path]) == 0
    assert [c.input for c, _ in calls] == [f"{tmp_path}/in", f"{tmp_path}/out"]
    assert len(manifest.list_done(str(tmp_path / "out"))) == 2
    assert (tmp_path / "out/_pairmill/config.yaml").exists()
    calls.clear()
    assert cli.main(["run", path, "--from", "pack"]) == 0
    assert "nothing to do" in capsys.readouterr().err
    assert len(calls) == 1
    calls.clear()
    assert cli.main(["run", path, "--only", "first"]) == 0
    assert len(calls) == 1
    (screen,) = collect([path])
    assert [line.standing.name for line in screen.lines] == ["first", "pack", "last"]
    assert "pack   done         2/2" in render(screen)


def test_chain_stops_at_a_failing_step(calls: list[tuple[Options, Request]], tmp_path: Path) -> None:
    assert cli.main(["run", _chain(tmp_path), "--first.factor", "75"]) == 75
    assert len(calls) == 1
    assert not (tmp_path / "out").exists()


def test_chain_is_checked_whole_before_it_starts(
    calls: list[tuple[Options, Request]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for options, word in (
        (["--last.factro", "1"], "factro"),
        (["--lats.factor", "1"], "lats"),
        (["--from", "lats"], "lats"),
        (["--factor", "1"], "--factor"),
    ):
        assert cli.main(["run", _chain(tmp_path), *options]) == 2
        assert word in capsys.readouterr().err
    assert not calls


@pytest.mark.parametrize(
    "text", ["steps: [", "steps: 3", "- a", "steps: {a: {}}\nsteeps: 3", "steps: {run: {}}"]
)
def test_bad_chain_files(tmp_path: Path, text: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"c\.yaml"):
        load_chain(str(path))


def test_yaml_tags_do_not_execute(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(f"steps: !!python/object/apply:os.system ['touch {tmp_path}/owned']")
    with pytest.raises(ConfigError, match="YAML"):
        load_chain(str(path))
    assert not (tmp_path / "owned").exists()


def test_overrides_of_steps() -> None:
    words = ["--crawl.image_size", "128", "--pack.where=a = 'b'", "--set.root=/x", "--crawl.flag"]
    assert split_overrides(words) == {
        "crawl": ["--image_size=128", "--flag=true"],
        "pack": ["--where=a = 'b'"],
        "set": ["--root=/x"],
    }


def test_choose_refuses_unknown_steps(calls: list[tuple[Options, Request]], tmp_path: Path) -> None:
    steps = load_chain(_chain(tmp_path))
    assert [s.name for s in choose(steps, start="pack")] == ["pack", "last"]
    with pytest.raises(ConfigError, match="no step 'x'"):
        choose(steps, only="x")
    assert run_chain([]) == 0
