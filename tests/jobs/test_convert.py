"""`pairmill convert`: the command, its exit codes and its errors."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from jobs import cli
from models.published.files import read_state_dict
from tests.models.published_world import bert_tokenizer, config_file, state_dict


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("convert")
    torch.save({"model": state_dict("albef")}, folder / "albef.pth")
    bert_tokenizer(folder / "bert", tokens=300)
    config_file(folder, "albef")
    return folder


def convert(*words: object) -> int:
    return cli.main(["convert", *map(str, words)])


def test_there_and_back(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, back = tmp_path / "model", tmp_path / "back.pth"
    size = ("--tokenizer", world / "bert", "--size", world / "albef.json")
    assert convert("--from", "albef", world / "albef.pth", out, *size) == 0
    assert "143 weights, state: queue, teacher" in capsys.readouterr().out
    assert sorted(p.name for p in out.iterdir()) == [
        "config.json", "model.safetensors", "state.safetensors", "tokenizer",
    ]  # fmt: skip
    assert convert("--to", "albef", out, back) == 0
    weights, found = state_dict("albef"), read_state_dict(back)
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[name], value) for name, value in weights.items())
    # what stands is replaced only when asked to
    assert convert("--to", "albef", out, back) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert convert("--to", "albef", out, back, "--overwrite") == 0
    assert convert("--from", "albef", world / "albef.pth", out, *size, "--overwrite") == 0


def test_a_folder_that_is_no_model_is_never_replaced(world: Path, tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious/thesis.txt").write_text("x")
    words = ("--from", "albef", world / "albef.pth", tmp_path / "precious", "--tokenizer", world / "bert")
    assert convert(*words, "--overwrite") == 2
    assert (tmp_path / "precious/thesis.txt").exists()


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["{w}/albef.pth", "{t}/out"], 2, "either --from FORMAT IN OUT or --to"),
        (["--from", "albef", "--to", "albef", "{w}/albef.pth", "{t}/out"], 2, "either --from"),
        (["--from", "albef", "{t}/out"], 2, "give IN and OUT, not 1 places"),
        (["--from", "albef-parts", "{w}/albef.pth", "{t}/out"], 2, "give OUT alone"),
        (["--from", "albef", "{w}/albef.pth", "{w}/albef.pth"], 2, "is IN and OUT"),
        (["--from", "albef", "{w}/albef.pth", "{t}/out", "--model", "{{"], 2, "is no JSON"),
        (["--from", "albef", "{w}/albef.pth", "{t}/out", "--model", "[1]"], 2, "holds no names and values"),
        (["--from", "albef", "{w}/none.pth", "{t}/out"], 1, "does not exist"),
        (["--from", "albef", "{w}/albef.pth", "{t}/out"], 1, "needs its tokenizer"),
        (["--from", "blip", "{w}/albef.pth", "{t}/out"], 1, "as blip: unknown names"),
        (["--to", "albef", "{w}", "{t}/out.pth"], 1, "is no exported model"),
        (["--from", "albef-parts", "{t}/out"], 1, "give --vision FILE"),
    ],
)
def test_what_cannot_be_done_is_said(
    words: list[str], code: int, message: str, world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert convert(*(word.format(w=world, t=tmp_path) for word in words)) == code
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_an_unknown_option_exits_2(world: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as stopped:
        convert("--from", "albef", world / "albef.pth", tmp_path / "out", "--sizzle", "base")
    assert stopped.value.code == 2
