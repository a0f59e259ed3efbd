"""State dicts become generators; what does not fit is named."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from network_pickles import official_weights
from safetensors.torch import load_file, save_file

import genlab
from genlab.checkpoints import READERS
from genlab.checkpoints.conversion import is_readable_folder
from genlab.checkpoints.readers.edm import EDMReader
from genlab.errors import CheckpointError, ConfigError, UnknownNameError


def golden_networks(shared: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Every case whose weights an official EDM class made, whatever its name."""
    for meta in sorted((shared / "golden").glob("*/meta.json")):
        for name, made in json.loads(meta.read_text()).get("constructors", {}).items():
            if made.get("builder") == "edm_precond":
                files = json.loads(meta.read_text())["weights"]
                yield meta.parent / f"{files[name]}.safetensors", made


def test_official_weights_of_every_case(shared: Path) -> None:
    """All official state dicts load, and every weight arrives as it was stored (in 16 bits)."""
    cases = list(golden_networks(shared))
    assert len(cases) >= 8
    for file, made in cases:
        generator = genlab.convert(file, config={"cls": made["cls"], "kwargs": made["kwargs"]})
        state = generator.network.state_dict()
        stored = {n.removeprefix("model."): v for n, v in load_file(file).items() if n != "u"}
        assert state.keys() == stored.keys()
        for name, value in stored.items():
            assert torch.equal(state[name], value.float())
        assert generator.num_classes == made["kwargs"].get("label_dim", 0)


@pytest.fixture
def case(tmp_path: Path) -> tuple[Path, dict[str, Any], dict[str, torch.Tensor]]:
    kwargs, weights = official_weights("EDMPrecond")
    file = tmp_path / "weights.safetensors"
    save_file(weights, file)
    return file, kwargs, weights


Case = tuple[Path, dict[str, Any], dict[str, torch.Tensor]]


def test_torch_files(case: Case) -> None:
    """``torch.save`` files, bare or in the usual containers, and without the prefix."""
    safetensors, kwargs, weights = case
    expected = genlab.convert(safetensors, config=kwargs).network.state_dict()
    bare = {name.removeprefix("model."): value for name, value in weights.items()}
    for suffix, content in (
        (".pt", weights),
        (".pth", {"step": 3, "ema": bare, "model": {"x": torch.ones(1)}}),
        (".ckpt", {"state_dict": weights}),
    ):
        file = safetensors.with_suffix(suffix)
        torch.save(content, file)
        found = genlab.convert(file, config=kwargs).network.state_dict()
        assert all(torch.equal(found[name], value) for name, value in expected.items())
    legacy = safetensors.with_suffix(".bin")
    torch.save(weights, legacy, _use_new_zipfile_serialization=False)
    assert genlab.convert(legacy, config=kwargs).num_classes == 3


def test_trained_null_class_and_gradients(case: Case) -> None:
    file, kwargs, _ = case
    generator: Any = genlab.convert(file, config={**kwargs, "label_dropout": 0.2})
    assert generator.has_null_class
    assert not generator.network.training
    assert all(parameter.requires_grad for parameter in generator.network.parameters())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("model.map_label.bias"), r"missing: map_label\.bias;"),
        (lambda w: w.update(extra=torch.ones(2)), "unexpected: extra;"),
        (
            lambda w: w.update({"model.map_layer0.bias": torch.ones(3)}),
            r"map_layer0\.bias is \[3\] where \[16\] is needed",
        ),
        (lambda w: w.clear() or w.update(a=torch.ones(1)), r"missing: .* and \d+ more; unexpected"),
        (lambda w: w.update(u=torch.ones(3)), "give cls=iDDPMPrecond"),
    ],
)
def test_weights_that_do_not_fit(case: Case, change: Any, message: str) -> None:
    file, kwargs, weights = case
    change(weights)
    save_file(weights, file)
    with pytest.raises(CheckpointError, match=message) as caught:
        genlab.convert(file, "edm", kwargs)
    assert str(file) in str(caught.value)


def test_wrong_table_of_noise_levels(tmp_path: Path) -> None:
    kwargs, weights = official_weights("iDDPMPrecond", M=20, model_type="SongUNet")
    save_file(weights, tmp_path / "w.safetensors")
    genlab.convert(tmp_path / "w.safetensors", config={"cls": "iDDPMPrecond", **kwargs})
    with pytest.raises(CheckpointError, match="is not the one that C_1, C_2 and M give"):
        genlab.convert(
            tmp_path / "w.safetensors", "edm", {"cls": "iDDPMPrecond", **kwargs, "M": 21}
        )


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt", "w.bin"])
@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.99])
def test_cut_short(name: str, share: float, case: Case, tmp_path: Path) -> None:
    _, kwargs, weights = case
    file = tmp_path / name
    if file.suffix == ".safetensors":
        save_file(weights, file)
    else:
        torch.save(weights, file, _use_new_zipfile_serialization=file.suffix == ".pt")
    file.write_bytes(file.read_bytes()[: int(file.stat().st_size * share)])
    with pytest.raises(CheckpointError, match=r"is cut short or damaged|holds more than tensors"):
        genlab.convert(file, config=kwargs)


class Runs:
    """Pickles as a call of os.system."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, ...]:
        import os

        return os.system, (self.command,)


@pytest.mark.parametrize("zipped", [True, False])
def test_torch_file_that_runs_code(zipped: bool, case: Case, tmp_path: Path) -> None:
    _, kwargs, weights = case
    mark = tmp_path / "mark"
    content = {**weights, "evil": Runs(f"touch {mark}")}
    torch.save(content, tmp_path / "w.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match=r"asks for os\.system .*, which GenLab never runs"):
        genlab.convert(tmp_path / "w.pt", config=kwargs)
    assert not mark.exists()


def test_torch_files_without_a_state_dict(tmp_path: Path) -> None:
    for content, found in (([1, 2], "list"), ({"epoch": 3}, "epoch"), ({}, "nothing")):
        torch.save(content, tmp_path / "w.pt")
        with pytest.raises(CheckpointError, match=rf"holds no state dict \(found: {found}\)"):
            genlab.convert(tmp_path / "w.pt", "edm", {"img_resolution": 8, "img_channels": 3})


def test_formats(case: Case) -> None:
    file, kwargs, _ = case
    with pytest.raises(UnknownNameError, match=r"no checkpoint format 'edn'; .*'edm'"):
        genlab.convert(file, "edn", kwargs)
    with pytest.raises(ConfigError, match="give the official constructor's arguments as config"):
        genlab.convert(file)  # told by its names, but not enough to build it
    other = file.with_suffix(".txt")
    other.write_text("hello")
    with pytest.raises(CheckpointError, match=r"of no format that GenLab can tell; .*, edm,"):
        genlab.convert(other)
    with pytest.raises(CheckpointError, match="not a file of tensors that GenLab knows"):
        genlab.convert(other, "edm", kwargs)
    with pytest.raises(CheckpointError, match="there is no file"):
        genlab.convert(file.with_name("absent.pkl"))
    with pytest.raises(CheckpointError, match="is a folder"):
        genlab.convert(file.parent)


def test_a_plugged_in_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A third party's format is guessed and read like ours; two that claim a file are named."""
    kwargs, weights = official_weights("EDMPrecond")

    class MineReader(EDMReader):
        def recognises(self, source: Path, config: Any) -> bool:
            return source.suffix == ".mine"

        def read(self, source: Path, config: Any) -> Any:
            return super().read(source.rename(source.with_suffix(".safetensors")), kwargs)

    monkeypatch.setattr(READERS, "_loaded", {**READERS._loaded})
    READERS.register("mine")(MineReader)
    save_file(weights, tmp_path / "w.safetensors")
    file = (tmp_path / "w.safetensors").rename(tmp_path / "w.mine")
    with pytest.raises(CheckpointError, match="could be any of edm, mine"):
        genlab.convert(file, config=kwargs)
    assert genlab.convert(file).num_classes == 3


def test_no_reader_is_loaded_to_know_a_file_from_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(READERS, "build", lambda name: pytest.fail(f"built {name}"))
    assert not is_readable_folder(tmp_path / "model.pt")
