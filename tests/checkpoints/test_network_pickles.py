"""NVIDIA's network pickles: read to the last bit, with their program text left alone."""

import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from network_pickles import (
    TINY,
    Persistent,
    module_tree,
    official_weights,
    write_network,
    write_pickle,
)
from safetensors.torch import save_file
from torch import Tensor, nn

import genlab
from genlab.checkpoints.readers.edm_pickle import read_pickle
from genlab.diffusion.condition import Condition
from genlab.errors import CheckpointError, ConfigError

CASES: list[tuple[str, dict[str, Any]]] = [
    ("EDMPrecond", {"augment_dim": 9, "channel_mult": [1, 1], "attn_resolutions": [4]}),
    ("VPPrecond", {"encoder_type": "skip", "decoder_type": "skip", "channel_mult": [1, 1]}),
    (
        "VEPrecond",
        {
            "embedding_type": "fourier",
            "encoder_type": "residual",
            "resample_filter": [1, 3, 3, 1],
            "channel_mult_noise": 2,
            "channel_mult": [1, 1],
        },
    ),
    ("iDDPMPrecond", {"model_type": "DhariwalUNet", "model_channels": 32, "label_dim": 0, "M": 20}),
]


def denoised(generator: Any) -> Tensor:
    shape = (2, *generator.image_shape)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    labels = torch.tensor([0, 2]) if generator.num_classes else None
    with torch.no_grad():
        return generator.denoiser(x, torch.tensor([0.5, 5.0]), Condition(labels=labels))


@pytest.mark.parametrize(("cls", "changes"), CASES, ids=[cls for cls, _ in CASES])
def test_same_as_the_state_dict(cls: str, changes: dict[str, Any], tmp_path: Path) -> None:
    """The pickle and the bare state dict give the same network, weight by weight and bit by bit."""
    kwargs, weights = official_weights(cls, **changes)
    pickled = genlab.convert(write_network(tmp_path / "net.pkl", cls, weights, kwargs))
    save_file(weights, tmp_path / "net.safetensors")
    bare = genlab.convert(tmp_path / "net.safetensors", config={"cls": cls, "kwargs": kwargs})
    state = pickled.network.state_dict()
    for name, value in bare.network.state_dict().items():
        assert torch.equal(state[name], value), name
        assert torch.equal(value, weights[f"model.{name}"])
    assert torch.equal(denoised(pickled), denoised(bare))


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_protocol(protocol: int, tmp_path: Path) -> None:
    kwargs, weights = official_weights("EDMPrecond")
    file = write_network(tmp_path / "net.pkl", "EDMPrecond", weights, kwargs, protocol)
    found = read_pickle(file)
    assert found.kwargs == kwargs
    assert {name: record.to_tensor().tolist() for name, record in found.tensors.items()} == {
        name: value.tolist() for name, value in weights.items()
    }


AUDITED = """
import sys
from pathlib import Path
from genlab.checkpoints.readers.edm_pickle import read_pickle

seen = set()
modules = set(sys.modules)
sys.addaudithook(lambda event, _: seen.add(event))
read_pickle(Path(sys.argv[1]))
print(sorted(seen & {"open", "compile", "exec", "import", "os.system", "subprocess.Popen"}))
print(sorted(set(sys.modules) - modules))
"""


def test_program_text_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Text that would leave a mark if it were run leaves none; nothing is compiled or imported.

    In a process of its own, because the test run's type checker compiles its checks all the time.
    """
    mark = tmp_path / "mark"
    monkeypatch.setattr("network_pickles.HARMLESS", f"open({str(mark)!r}, 'w').close()\n")
    kwargs, weights = official_weights("EDMPrecond")
    file = write_network(tmp_path / "net.pkl", "EDMPrecond", weights, kwargs)
    assert b"open(" in file.read_bytes()
    command = [sys.executable, "-c", AUDITED, str(file)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.stdout.splitlines() == ["['open']", "[]"], result.stderr
    assert not mark.exists()


def test_text_that_is_no_program_is_fine_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("network_pickles.HARMLESS", "def broken(:\n")
    kwargs, weights = official_weights("EDMPrecond")
    assert genlab.convert(write_network(tmp_path / "n.pkl", "EDMPrecond", weights, kwargs))


def test_null_class_only_with_recorded_label_dropout(tmp_path: Path) -> None:
    kwargs, weights = official_weights("EDMPrecond")
    for recorded, expected in ((kwargs, False), ({**kwargs, "label_dropout": 0.1}, True)):
        file = write_network(tmp_path / "net.pkl", "EDMPrecond", weights, recorded)
        generator: Any = genlab.convert(file)
        assert generator.has_null_class is expected


def test_positional_arguments(tmp_path: Path) -> None:
    kwargs, weights = official_weights("VPPrecond")
    root = module_tree("VPPrecond", weights, {k: v for k, v in kwargs.items() if "img" not in k})
    root._init_args = (8, 3)  # type: ignore[assignment]  # () until now
    assert read_pickle(write_pickle(tmp_path / "n.pkl", {"ema": root})).kwargs == kwargs


def test_a_network_without_the_mapping_around_it(tmp_path: Path) -> None:
    kwargs, weights = official_weights("EDMPrecond")
    file = write_pickle(tmp_path / "net.pkl", module_tree("EDMPrecond", weights, kwargs))
    assert genlab.convert(file).num_classes == 3


def test_arguments_that_are_not_recorded(tmp_path: Path) -> None:
    kwargs, weights = official_weights("EDMPrecond")
    file = write_network(tmp_path / "net.pkl", "EDMPrecond", weights, None)
    with pytest.raises(ConfigError, match="give the official constructor's arguments as config"):
        genlab.convert(file)
    assert genlab.convert(file, config=kwargs).image_shape == (3, 8, 8)


def test_config_where_the_file_has_its_own(tmp_path: Path) -> None:
    kwargs, weights = official_weights("EDMPrecond")
    file = write_network(tmp_path / "net.pkl", "EDMPrecond", weights, kwargs)
    with pytest.raises(ConfigError, match="leave the config out"):
        genlab.convert(file, config=kwargs)


def test_half_precision_and_views(tmp_path: Path) -> None:
    """Weights stored in 16 bits, out of order in memory, or as part of a larger storage."""
    kwargs, weights = official_weights("EDMPrecond")
    first, second = "model.enc.8x8_conv.weight", "model.map_layer0.weight"
    weights = {name: value.half().float() for name, value in weights.items()}
    stored = {name: value.half() for name, value in weights.items()}
    stored[first] = stored[first].to(memory_format=torch.channels_last)
    stored[second] = torch.cat([stored[second], stored[second] + 1])[: len(stored[second])]
    network = genlab.convert(
        write_network(tmp_path / "net.pkl", "EDMPrecond", stored, kwargs)
    ).network
    for name, value in network.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, weights[f"model.{name}"]), name


def edm2() -> nn.Module:
    net = Persistent("Precond", _init_args=(), _init_kwargs={"img_resolution": 8})
    net.add_module("unet", Persistent("UNet", label_balance=0.5))
    return net


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"ema": edm2()}, "holds a network of EDM2 .* which GenLab does not support yet"),
        (
            {"ema": Persistent("Generator")},
            "holds a network of class Generator; GenLab reads EDM's",
        ),
        ({"G": 1, "D": 2}, r"holds no network under the key 'ema' \(found: G, D\)"),
        ([1, 2], r"holds no network under the key 'ema' \(found: list\)"),
        ({"ema": None}, "holds no network under the key 'ema'"),
    ],
)
def test_other_files(content: Any, message: str, tmp_path: Path) -> None:
    file = write_pickle(tmp_path / "other.pkl", content)
    with pytest.raises(CheckpointError, match=message) as caught:
        genlab.convert(file)
    assert str(file) in str(caught.value)


def test_another_layout_version(tmp_path: Path) -> None:
    kwargs, weights = official_weights("EDMPrecond")
    file = write_network(tmp_path / "net.pkl", "EDMPrecond", weights, kwargs)
    data = file.read_bytes()
    assert data.count(b"\x8c\x07version\x94K\x06") == 1  # spelled out once, referred to afterwards
    file.write_bytes(data.replace(b"\x8c\x07version\x94K\x06", b"\x8c\x07version\x94K\x07"))
    with pytest.raises(CheckpointError, match="version 7 of the layout; GenLab knows version 6"):
        genlab.convert(file)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_blocks": 10**9}, "num_blocks of EDMPrecond must be a whole number in 1 ... 64"),
        ({"model_channels": 4096}, "does not fit: .*is needed"),
        ({"channel_mult": [1, [2]]}, "channel_mult of EDMPrecond must be a list"),
        ({"wings": 2}, "no argument 'wings'"),
        ({"model_type": ["SongUNet"]}, "EDM has no network"),
    ],
)
def test_odd_recorded_arguments(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    few = {"model.map_layer0.weight": torch.ones(2, 2)}
    file = write_network(tmp_path / "n.pkl", "EDMPrecond", few, {**TINY, **change})
    with pytest.raises(CheckpointError, match=message):
        genlab.convert(file)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.9, 0.9999])
def test_cut_short(share: float, tmp_path: Path) -> None:
    kwargs, weights = official_weights("EDMPrecond")
    file = write_network(tmp_path / "net.pkl", "EDMPrecond", weights, kwargs)
    file.write_bytes(file.read_bytes()[: int(file.stat().st_size * share)])
    with pytest.raises(CheckpointError, match=r"net\.pkl (is cut short|cannot be read)"):
        genlab.convert(file)


def test_noise_is_no_pickle(tmp_path: Path) -> None:
    """Whatever the bytes, the answer is one of our sentences."""
    file = tmp_path / "noise.pkl"
    draw = torch.Generator().manual_seed(3)
    for _ in range(100):
        noise = torch.randint(0, 256, (64,), generator=draw, dtype=torch.uint8)
        file.write_bytes(b"\x80\x04" + bytes(noise.tolist()))
        with pytest.raises(CheckpointError):
            genlab.convert(file)


def test_damaged_anywhere(tmp_path: Path) -> None:
    """A file with a wrong byte is read or refused, never anything else."""
    content = {"ema": Persistent("EDMPrecond", _init_args=(), _init_kwargs={"a": [1, {2}, (3.0,)]})}
    content["ema"].register_parameter("w", nn.Parameter(torch.ones(2)))
    data = bytearray(write_pickle(tmp_path / "net.pkl", content).read_bytes())
    assert read_pickle(tmp_path / "net.pkl").tensors["w"].to_tensor().tolist() == [1, 1]
    refused = 0
    positions = range(0, len(data), 3)
    for position in positions:
        changed = data.copy()
        changed[position] ^= 0x41
        (tmp_path / "net.pkl").write_bytes(changed)
        try:
            read_pickle(tmp_path / "net.pkl")
        except CheckpointError:
            refused += 1
    assert refused > len(positions) // 4


def test_plain_pickle_of_a_module(tmp_path: Path) -> None:
    """What ``pickle.dump(network)`` of an ordinary class writes is refused by the class's name."""
    file = tmp_path / "plain.pkl"
    file.write_bytes(pickle.dumps({"ema": nn.Linear(2, 2)}))
    with pytest.raises(CheckpointError, match=r"asks for torch\.nn\.modules\.linear\.Linear"):
        genlab.convert(file)
