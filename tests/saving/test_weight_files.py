"""Weights from a file: numbers, types and memory as the model needs them."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from genlab.errors import CheckpointError
from genlab.saving.weight_files import WEIGHTS, read_shapes, read_tensors, weight_files

TYPES = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.uint8,
    torch.bool,
]


def test_every_type_and_shape(tmp_path: Path) -> None:
    path = tmp_path / WEIGHTS
    tensors = {str(dtype): (torch.randn(3, 5) * 9).to(dtype) for dtype in TYPES}
    tensors |= {"scalar": torch.tensor(2.5), "empty": torch.empty(0, 4)}
    save_file(tensors, path, {"format": "pt", "odd": "x"})  # metadata, and a head of any length
    read = dict(read_tensors(path))
    assert read.keys() == tensors.keys() == read_shapes([path]).keys()
    for name, tensor in load_file(path).items():
        assert torch.equal(read[name], tensor), name
        assert read[name].dtype == tensor.dtype
        assert read[name].data_ptr() % 64 == 0  # matrix libraries round by alignment


def test_a_type_that_nothing_computes_in(tmp_path: Path) -> None:
    save_file({"x": torch.zeros(4).to(torch.float8_e4m3fn)}, tmp_path / WEIGHTS)
    with pytest.raises(CheckpointError, match="F8_E4M3, which GenLab does not read"):
        list(read_tensors(tmp_path / WEIGHTS))


def test_cut_short_between_head_and_numbers(tmp_path: Path) -> None:
    path = tmp_path / WEIGHTS
    save_file({"x": torch.zeros(400)}, path)
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(CheckpointError, match="cut short"):
        list(read_tensors(path))


def test_shards_stay_in_their_folder(tmp_path: Path) -> None:
    (tmp_path / f"{WEIGHTS}.index.json").write_text('{"weight_map": {"x": "../other.safetensors"}}')
    with pytest.raises(CheckpointError, match="outside its folder"):
        weight_files(tmp_path)
    assert weight_files(tmp_path / "nowhere") == []
