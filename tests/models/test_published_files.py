"""Checkpoint files: what is read, what is refused, and that nothing in them runs."""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from models.published.files import read_state_dict, write_state_dict

WEIGHTS = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.tensor([1, 2])}


def assert_weights(found: dict[str, torch.Tensor]) -> None:
    assert found.keys() == WEIGHTS.keys()
    assert all(torch.equal(found[name], value) for name, value in WEIGHTS.items())


@pytest.mark.parametrize(
    "wrap",
    [
        lambda w: w,
        lambda w: {"model": w, "epoch": 3},
        lambda w: {"state_dict": w, "name": "x"},
        lambda w: {"module": w},
        lambda w: {"module": {f"module.{n}": v for n, v in w.items()}},
        lambda w: {"state_dict": {f"module.{n}": v for n, v in w.items()}},
    ],
)
def test_wrappers_and_prefixes_come_off(wrap: Callable[[Any], Any], tmp_path: Path) -> None:
    torch.save(wrap(WEIGHTS), tmp_path / "x.pth")
    assert_weights(read_state_dict(tmp_path / "x.pth"))


def test_safetensors_and_what_is_written_is_read(tmp_path: Path) -> None:
    save_file({f"module.{n}": v for n, v in WEIGHTS.items()}, tmp_path / "x.safetensors")
    assert_weights(read_state_dict(tmp_path / "x.safetensors"))
    for name, wrapper in (("y.pth", "model"), ("y.bin", None), ("y.safetensors", "model")):
        write_state_dict(tmp_path / name, WEIGHTS, wrapper=wrapper)
        assert_weights(read_state_dict(tmp_path / name))
    assert torch.load(tmp_path / "y.pth").keys() == {"model"}
    assert not list(tmp_path.glob(".*"))


class Hostile:
    """Unpickling this runs a command."""

    def __init__(self, owned: Path) -> None:
        self.owned = owned

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.owned}",)


@pytest.mark.parametrize("how", ["zip", "legacy", "plain"])
def test_a_hostile_pickle_is_refused_and_does_not_run(how: str, tmp_path: Path) -> None:
    owned, path = tmp_path / "owned", tmp_path / "x.pth"
    content = {"model": WEIGHTS, "args": Hostile(owned)}
    if how == "plain":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=how == "zip")
    with pytest.raises(ValueError, match=r"more than tensors.*safetensors"):
        read_state_dict(path)
    assert not owned.exists()
    torch.load(path, weights_only=False) if how != "plain" else pickle.loads(path.read_bytes())
    assert owned.exists(), "the file was harmless, so the refusal proves nothing"


class Scripted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Parameter(torch.randn(3, 2))
        self.layers = nn.ModuleList([nn.Linear(2, 2), nn.LayerNorm(2)])
        self.register_buffer("input_resolution", torch.tensor(224))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x @ self.proj)
        return x


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_torchscript_archive_is_read_without_its_code(tmp_path: Path) -> None:
    module, path = Scripted().half(), tmp_path / "x.pt"
    torch.jit.script(module).save(str(path))
    found = read_state_dict(path)
    assert found.keys() == module.state_dict().keys()
    assert all(torch.equal(found[n], v) and found[n].dtype == v.dtype for n, v in module.state_dict().items())


def test_a_hostile_torchscript_archive_is_refused_and_does_not_run(tmp_path: Path) -> None:
    owned, path = tmp_path / "owned", tmp_path / "x.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/code/__torch__.py", "")
        archive.writestr("x/data.pkl", pickle.dumps(Hostile(owned), protocol=2))
    with pytest.raises(ValueError, match=r"system, which is not run"):
        read_state_dict(path)
    assert not owned.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no checkpoint|more than tensors"),
        (b"PK\x03\x04 cut", "no checkpoint|more than tensors"),
        ({"epoch": 3, "optimizer": {}}, "no state dict"),
        ({"model": {"a": 1}}, "no state dict"),
        ([1, 2], "no state dict"),
    ],
)
def test_what_is_no_checkpoint_is_named(content: Any, message: str, tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(ValueError, match=message):
        read_state_dict(path)


def test_a_cut_file_is_named(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    torch.save(WEIGHTS, buffer)
    (tmp_path / "x.pth").write_bytes(buffer.getvalue()[:-200])
    with pytest.raises(ValueError, match=r"x\.pth"):
        read_state_dict(tmp_path / "x.pth")
    (tmp_path / "x.safetensors").write_bytes(b"\x10" * 64)
    with pytest.raises(ValueError, match="download it again"):
        read_state_dict(tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="does not exist"):
        read_state_dict(tmp_path / "none.pth")
