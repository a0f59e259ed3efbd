"""Files of tensors, whatever network they are of: names, and what they may cost."""

import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from genlab.checkpoints.weights import build_network, read_state_dict
from genlab.errors import CheckpointError
from genlab.files import MAX_JSON, read_json_object


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_names_of_data_parallel_training_are_the_networks_own(suffix: str, tmp_path: Path) -> None:
    file = tmp_path / f"w{suffix}"
    state = {"module.a.weight": torch.ones(2), "module.module.b": torch.zeros(3)}
    save: Any = torch.save if suffix == ".pt" else save_file
    save(state, file)
    assert list(read_state_dict(file)) == ["a.weight", "module.b"]
    save({**state, "b": torch.ones(1)}, file)
    assert set(read_state_dict(file)) == {*state, "b"}


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_many_names_for_the_same_numbers(zipped: bool, dtype: torch.dtype, tmp_path: Path) -> None:
    """A megabyte that would become a gigabyte once every tensor has memory of its own."""
    shared = torch.zeros(2**18, dtype=dtype)
    state = {f"layers.{i}": shared for i in range(1000)}
    torch.save(state, tmp_path / "w.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match=r"w\.pt describes .* many share the same numbers"):
        read_state_dict(tmp_path / "w.pt")


def test_tied_weights_have_two_names(tmp_path: Path) -> None:
    tied = torch.randn(1000)
    torch.save({"embed": tied, "head": tied, "bias": torch.zeros(1)}, tmp_path / "w.pt")
    assert torch.equal(read_state_dict(tmp_path / "w.pt")["head"], tied)


def test_compressed_files(tmp_path: Path) -> None:
    """torch would unpack them to a thousand times their size."""
    torch.save({"w": torch.zeros(2**18)}, tmp_path / "plain.pt")
    with (
        zipfile.ZipFile(tmp_path / "plain.pt") as plain,
        zipfile.ZipFile(tmp_path / "w.pt", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for name in plain.namelist():
            packed.writestr(name, plain.read(name))
    assert torch.load(tmp_path / "w.pt")["w"].shape == (2**18,)
    with pytest.raises(CheckpointError, match=r"w\.pt unpacks to 1,\d{3},\d{3} bytes"):
        read_state_dict(tmp_path / "w.pt")


class Scaled(nn.Module):
    """A weight, and a table that no file holds."""

    table: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(size))
        self.register_buffer("table", torch.arange(size), persistent=False)


def test_a_network_gets_numbers_for_all_that_it_holds() -> None:
    network = build_network(Scaled, {"size": 3}, {"weight": torch.tensor([1, 2, 3])}, "w.pt")
    assert network.weight.tolist() == [1.0, 2.0, 3.0]
    assert network.weight.requires_grad
    assert network.table.tolist() == [0, 1, 2]
    with pytest.raises(CheckpointError, match=r"w\.pt \(Scaled\) cannot be built: .*'breadth'"):
        build_network(Scaled, {"breadth": 3}, {}, "w.pt (Scaled)")


def test_large_json(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text("{" + " " * (MAX_JSON - 2) + "}")
    assert read_json_object(file) == {}
    file.write_text("{" + " " * (MAX_JSON - 1) + "}")
    with pytest.raises(CheckpointError, match="it is too large"):
        read_json_object(file)
    with pytest.raises(CheckpointError, match=r"no file .*absent\.json; fetch it again"):
        read_json_object(tmp_path / "absent.json")
