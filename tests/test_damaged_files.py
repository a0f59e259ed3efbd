"""Damaged files of every kind that GenLab reads: a sentence each, soon, and in little memory."""

import random
import resource
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import numpy as np
import pytest
import torch
from mutations import damaged, damaged_text
from network_pickles import official_weights, write_network
from safetensors.torch import save_file
from small_records import make_record
from small_sets import class_files, manifest, picture, write_folder, write_idx, write_zip

import genlab
from genlab import config
from genlab.checkpoints.arguments import read_arguments
from genlab.data.check.checks import check
from genlab.data.sources.opening import open_source
from genlab.errors import GenLabError
from genlab.eval.leaderboard.records import read_record, write_record
from genlab.eval.references.files import read_reference
from genlab.networks import BigGANGenerator, DiT, GatedPixelCNN
from genlab.runs.config import SampleConfig

SECONDS = 20
MEGABYTES = 2000
COUNT = 2000
"""Damaged files in all."""


@dataclass(frozen=True)
class Kind:
    """One kind of file.

    Attributes:
        whole: a good file, or a folder that holds it.
        damage: which file of the folder is damaged; "" where ``whole`` is the file.
        read: reads it, as a user's command does.
        text: whether it is text, which is damaged in other ways than bytes.
    """

    whole: Path
    damage: str
    read: Callable[[Path], object]
    text: bool = False


def _dit_weights() -> dict[str, torch.Tensor]:
    network = DiT(8, 1, 1, label_dim=3, hidden_size=8, depth=1, num_heads=2, patch_size=4)
    return {name: value.clone() for name, value in network.state_dict().items()}


def _checkpoints(root: Path) -> Iterator[tuple[str, Kind]]:
    dit = _dit_weights()
    torch.save({"ema": dit, "step": 3}, root / "dit.pt")
    torch.save(dit, root / "dit.bin", _use_new_zipfile_serialization=False)
    save_file(dit, root / "dit.safetensors")
    read_dit: Callable[[Path], object] = lambda path: genlab.convert(path, "dit", {"num_heads": 2})  # noqa: E731
    for name in ("dit.pt", "dit.bin", "dit.safetensors"):
        yield name, Kind(root / name, "", read_dit)
    gan = BigGANGenerator(32, num_classes=2, channels=1, dim_z=4, hierarchical=False)
    torch.save(gan.state_dict(), root / "G.pth")
    yield "biggan", Kind(root / "G.pth", "", genlab.convert)
    pixels = GatedPixelCNN(4, label_dim=2, num_levels=4, channels=4, num_layers=2, head_channels=4)
    weights = {name: value.clone() for name, value in pixels.state_dict().items()}
    # An official file holds what the mask of the first layer hides, too.
    for name, hidden in (("vert", (0, 0, 0, 1)), ("horiz", (0, 1))):
        key = f"layers.0.{name}_stack.weight"
        weights[key] = torch.nn.functional.pad(weights[key], hidden)
    save_file(weights, root / "pixels.safetensors")
    yield "pixelcnn", Kind(root / "pixels.safetensors", "", genlab.convert)
    kwargs, official = official_weights("EDMPrecond")
    write_network(root / "net.pkl", "EDMPrecond", official, kwargs)
    yield "edm", Kind(root / "net.pkl", "", genlab.convert)


def _folders(root: Path, model: Path) -> Iterator[tuple[str, Kind]]:
    read: Callable[[Path], object] = lambda path: genlab.load(str(path))  # noqa: E731
    for name in ("model_index.json", "network/config.json"):
        yield f"model: {name}", Kind(model, name, read, text=True)
    name = "network/diffusion_pytorch_model.safetensors"
    yield "model: weights", Kind(model, name, read)


def _data(root: Path) -> Iterator[tuple[str, Kind]]:
    def read(path: Path) -> None:
        check(path, threads=1)
        source = open_source(path)
        for index in range(len(source)):
            source.read(index)

    files = class_files()
    labels = [[name, int(name.startswith("coat"))] for name in files]
    files["dataset.json"] = manifest(labels).encode()
    write_zip(root / "set.zip", files)
    yield "zip", Kind(root / "set.zip", "", read)
    write_folder(root / "set", files)
    yield "png", Kind(root / "set", "bag/0.png", read)
    yield "manifest", Kind(root / "set", "dataset.json", read, text=True)
    images = np.stack([np.asarray(picture(seed)) for seed in range(4)])
    np.savez(root / "set.npz", arr_0=images, arr_1=np.arange(4))
    yield "npz", Kind(root / "set.npz", "", read)
    (root / "idx").mkdir()
    write_idx(root / "idx" / "train-images-idx3-ubyte", images[..., 0])
    write_idx(root / "idx" / "train-labels-idx1-ubyte", np.arange(4, dtype=np.uint8))
    yield "idx images", Kind(root / "idx", "train-images-idx3-ubyte", read)
    yield "idx labels", Kind(root / "idx", "train-labels-idx1-ubyte", read)


def _texts(root: Path) -> Iterator[tuple[str, Kind]]:
    record = write_record(root, make_record("m", fid=3.5))
    yield "record", Kind(record, "", read_record, text=True)
    (root / "sample.yaml").write_text(
        "model: edm-fmnist\nseeds: 0-3\nbatch_size: 4\nsampler:\n  solver: {name: heun}\n"
        "  schedule: {name: karras, num_steps: 5}\n  guidance: [{name: cfg, scale: 2}]\n"
    )

    def read(path: Path) -> None:
        config.load(SampleConfig, str(path), "sample")

    yield "yaml", Kind(root / "sample.yaml", "", read, text=True)
    (root / "arguments.yaml").write_text("img_resolution: 8\nchannel_mult: [1, 2]\nM: 9\n")
    yield "arguments", Kind(root / "arguments.yaml", "", read_arguments, text=True)
    np.savez(root / "stats.npz", mu=np.zeros(4), sigma=np.eye(4))
    yield "statistics", Kind(root / "stats.npz", "", read_reference)


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> dict[str, Kind]:
    root = tmp_path_factory.mktemp("whole")
    groups = (_checkpoints(root), _folders(root, tiny_model), _data(root), _texts(root))
    return {name: kind for group in groups for name, kind in group}


class TooLongError(BaseException):
    """No `Exception`, so that no guard takes it for a fault of the file."""


@contextmanager
def limited(seconds: int) -> Iterator[None]:
    def ring(number: int, frame: FrameType | None) -> None:
        raise TooLongError(f"no answer after {seconds} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def damage(kind: Kind, folder: Path, rng: random.Random) -> Path:
    """A damaged copy of a good file or folder."""
    copy = folder / kind.whole.name
    if kind.damage:
        shutil.copytree(kind.whole, copy)
    else:
        shutil.copy(kind.whole, copy)
    file = copy / kind.damage if kind.damage else copy
    if kind.text:
        text = damaged_text(file.read_text(encoding="utf-8"), rng)
        file.write_bytes(text.encode(errors="surrogatepass"))
    else:
        file.write_bytes(damaged(file.read_bytes(), rng))
    return copy


def survey(kinds: dict[str, Kind], count: int, root: Path) -> dict[str, int]:
    """Read ``count`` damaged files of each kind; how many of each were refused."""
    refused = dict.fromkeys(kinds, 0)
    for name, kind in kinds.items():
        for seed in range(count):
            folder = root / "damaged"
            folder.mkdir()
            path = damage(kind, folder, random.Random(f"{name} {seed}"))
            try:
                with limited(SECONDS), suppress(UserWarning):
                    kind.read(path)
            except GenLabError as error:
                refused[name] += 1
                message = str(error)
                assert message.isprintable(), (name, seed, message)
                assert len(message) < 2000, (name, seed)
            except BaseException as error:
                keep = root / f"{name.replace('/', '-')}-{seed}"
                shutil.move(folder, keep)
                what = f"{name}, seed {seed}: {type(error).__name__}, see {keep}"
                raise AssertionError(what) from error
            shutil.rmtree(folder)
    return refused


def test_whole_files_are_read(kinds: dict[str, Kind]) -> None:
    """Or the damaged ones would be refused for another reason."""
    for kind in kinds.values():
        kind.read(kind.whole)


# NumPy leaves a damaged file to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_few_damaged_files(kinds: dict[str, Kind], tmp_path: Path) -> None:
    survey(kinds, 3, tmp_path)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_damaged_files(kinds: dict[str, Kind], tmp_path: Path) -> None:
    memory, begun = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    refused = survey(kinds, -(-COUNT // len(kinds)), tmp_path)
    assert all(refused.values()), refused
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < MEGABYTES * 1024
    assert time.process_time() - begun < 240
