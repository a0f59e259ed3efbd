"""Damaged files of every kind that GenLab reads: a sentence each, soon, and in little memory."""

import io
import random
import resource
import shutil
import signal
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import numpy as np
import pytest
import torch
from mutations import damaged, damaged_text, with_checksums
from network_pickles import official_weights, write_network
from PIL import Image
from safetensors.torch import save_file
from small_adapters import write_base, write_small_adapter
from small_records import make_record
from small_sets import (
    class_files,
    encoded,
    manifest,
    picture,
    write_folder,
    write_idx,
    write_zip,
)
from tiny_autoencoder import tiny_kl

import genlab
from genlab import config
from genlab.checkpoints.arguments import read_arguments
from genlab.data.check.checks import check
from genlab.data.dataset import ImageDataset
from genlab.data.sources.latents import LatentDataset
from genlab.data.sources.opening import open_source
from genlab.errors import GenLabError
from genlab.eval.leaderboard.records import read_record, write_record
from genlab.eval.references.files import is_statistics, read_reference, write_reference
from genlab.eval.subject import Subject
from genlab.networks import BigGANGenerator, DiT, GatedPixelCNN
from genlab.runs.config import SampleConfig
from genlab.runs.drawing import draw_samples
from genlab.runs.encoding import encode_dataset
from genlab.runs.plan import SamplePlan

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
        member: of a zip or npz, which is damaged and has its checksum all the same.
        mend: what a forger does afterwards, such as writing checksums.
    """

    whole: Path
    damage: str
    read: Callable[[Path], object]
    text: bool = False
    member: str = ""
    mend: Callable[[bytes], bytes] = bytes


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
    yield "zip: png", Kind(root / "set.zip", "", read, member="bag/0.png")
    yield "zip: manifest", Kind(root / "set.zip", "", read, text=True, member="dataset.json")
    write_folder(root / "set", files)
    yield "png", Kind(root / "set", "bag/0.png", read)
    yield "png with checksums", Kind(root / "set", "bag/0.png", read, mend=with_checksums)
    yield "manifest", Kind(root / "set", "dataset.json", read, text=True)
    for name, data in _single_images():
        write_folder(root / name, {f"bag/{name}": data, "coat/0.png": files["coat/0.png"]})
        mend = with_checksums if name.endswith(".png") else bytes
        yield name, Kind(root / name, f"bag/{name}", read, mend=mend)
    images = np.stack([np.asarray(picture(seed)) for seed in range(4)])
    np.savez(root / "set.npz", arr_0=images, arr_1=np.arange(4))
    yield "npz", Kind(root / "set.npz", "", read)
    for name in ("arr_0.npy", "arr_1.npy"):
        yield f"npz: {name}", Kind(root / "set.npz", "", read, member=name)
    (root / "idx").mkdir()
    write_idx(root / "idx" / "train-images-idx3-ubyte", images[..., 0])
    write_idx(root / "idx" / "train-labels-idx1-ubyte", np.arange(4, dtype=np.uint8))
    yield "idx images", Kind(root / "idx", "train-images-idx3-ubyte", read)
    yield "idx labels", Kind(root / "idx", "train-labels-idx1-ubyte", read)


def _single_images() -> Iterator[tuple[str, bytes]]:
    """One image of every format that people have, and of the kinds that have readers of our own."""
    photograph = picture(1, (24, 24)).resize((32, 24))
    turned = Image.Exif()
    turned[0x0112] = 6
    yield "photograph.jpg", encoded(photograph, "jpeg", exif=turned)
    yield "cmyk.jpeg", encoded(photograph.convert("CMYK"), "jpeg")
    yield "lossless.webp", encoded(photograph, "webp", lossless=True)
    yield "lossy.webp", encoded(photograph, "webp")
    yield "palette.gif", encoded(photograph.convert("P"), "gif")
    yield "plain.bmp", encoded(photograph, "bmp")
    clear = {"transparency": b"\xff" * 255}
    yield "palette.png", encoded(photograph.convert("P"), "png", **clear)
    deep = Image.fromarray(np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000)
    yield "16-bits.png", encoded(deep, "png")
    yield "16-bits.tif", encoded(deep, "tiff")
    yield "16-bits.ppm", b"P6 4 4 65535\n" + bytes(range(96))


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


def _folders_of_runs(root: Path, model: Path) -> Iterator[tuple[str, Kind]]:
    """What commands write and other commands read."""
    generator = genlab.load(model)
    sampler = generator.build_sampler({"schedule": {"num_steps": 2}})
    identity = generator.identity(sampler)
    plan = SamplePlan(seeds=(0, 1), labels=(0, 1), image_shape=(1, 8, 8), identity=identity)

    def sample(folder: Path) -> None:
        draw_samples(generator, plan, folder, sampler=sampler, batch_size=2, config={})

    sample(root / "drawn")
    yield "samples, scored", Kind(root / "drawn", "manifest.json", Subject.of_folder, text=True)
    yield "samples, continued", Kind(root / "drawn", "manifest.json", sample, text=True)

    def read_latents(path: Path) -> None:
        dataset = LatentDataset(path)
        for index in range(len(dataset)):
            dataset[index]

    images = np.stack([np.asarray(picture(seed, mode="L")) for seed in range(4)])
    np.savez(root / "grey.npz", arr_0=images, arr_1=np.arange(4))
    encode_dataset(ImageDataset(root / "grey.npz"), tiny_kl(), root / "latents", options={})
    for name in ("latents.json", "shards/00000.npy", "labels.npy"):
        text = name.endswith(".json")
        yield f"latents: {name}", Kind(root / "latents", name, read_latents, text=text)

    base = write_base(root / "base")
    write_small_adapter(root / "adapter", base)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        text = name.endswith(".json")
        yield f"adapter: {name}", Kind(root / "adapter", name, genlab.load, text=text)


def _statistics(root: Path) -> Iterator[tuple[str, Kind]]:
    def read(path: Path) -> None:
        if is_statistics(path):
            read_reference(path)

    np.savez(root / "stats.npz", mu=np.zeros(4), sigma=np.eye(4))
    yield "statistics", Kind(root / "stats.npz", "", read)
    write_reference(root / "own.safetensors", read_reference(root / "stats.npz"))
    yield "own statistics", Kind(root / "own.safetensors", "", read)


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> dict[str, Kind]:
    root = tmp_path_factory.mktemp("whole")
    groups = (
        *(_checkpoints(root), _folders(root, tiny_model), _data(root), _texts(root)),
        *(_statistics(root), _folders_of_runs(root, tiny_model)),
    )
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
    if kind.member:
        _write_member(file, kind.member, lambda data: _damaged(kind, data, rng))
    else:
        file.write_bytes(_damaged(kind, file.read_bytes(), rng))
    return copy


def _damaged(kind: Kind, data: bytes, rng: random.Random) -> bytes:
    if kind.text:
        return damaged_text(data.decode(), rng).encode(errors="surrogatepass")
    return kind.mend(damaged(data, rng))


def _write_member(file: Path, member: str, change: Callable[[bytes], bytes]) -> None:
    """Change one member of a zip, with all checksums as they should be."""
    with zipfile.ZipFile(io.BytesIO(file.read_bytes())) as old, zipfile.ZipFile(file, "w") as new:
        for info in old.infolist():
            data = old.read(info)
            new.writestr(info.filename, change(data) if info.filename == member else data)


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
