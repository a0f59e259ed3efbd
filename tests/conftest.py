"""Fixtures that all rooms share, and the marks ``gpu`` and ``slow``."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from genlab import DiffusionGenerator
from genlab.diffusion.preconditioning import EDM
from genlab.networks import SongUNet

CHECKOUT = Path(__file__).resolve().parents[1]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--run-slow", action="store_true", help="run the tests marked slow too")


def pytest_configure(config: pytest.Config) -> None:
    # Tests are tiny and run side by side (-n 2): more threads a process would only get in each
    # other's way.
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    skips = {}
    if not config.getoption("--run-slow"):
        skips["slow"] = pytest.mark.skip(reason="slow: run with --run-slow")
    if not torch.cuda.is_available():
        skips["gpu"] = pytest.mark.skip(reason="gpu: no CUDA device")
    for item in items:
        for mark, skip in skips.items():
            if mark in item.keywords:
                item.add_marker(skip)


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Every test starts from the same random state, whatever ran before it."""
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002 - third-party code still draws from the global state


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or fills the user's caches, and none reaches the network through the hub."""
    monkeypatch.setenv("GENLAB_HOME", str(tmp_path_factory.getbasetemp() / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real data and golden cases: ``GENLAB_SHARED``, else beside the checkout."""
    folder = Path(os.environ.get("GENLAB_SHARED", CHECKOUT.parent / "shared"))
    if not folder.is_dir():
        pytest.skip("no folder of shared data: set GENLAB_SHARED")
    return folder


def _need(path: Path) -> Path:
    if not path.exists():
        pytest.skip(f"no {path.name} in the folder of shared data")
    return path


@pytest.fixture(scope="session")
def fashion_mnist(shared: Path) -> Path:
    """The folder with Fashion-MNIST's four official ``idx.gz`` files."""
    return _need(shared / "data" / "fashion-mnist")


@pytest.fixture(scope="session")
def cifar_zip(shared: Path) -> Path:
    """Half of CIFAR-10's training set as an EDM-style zip of lossless WebP."""
    return _need(shared / "data" / "cifar10-train-a.zip")


@pytest.fixture(scope="session")
def tiny_generator() -> DiffusionGenerator:
    """A real diffusion model of 3 classes that draws 8x8 grey noise at once; do not change it."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        network = SongUNet(
            8, 1, 1, label_dim=3, model_channels=8, channel_mult=[1, 1], num_blocks=1,
            attn_resolutions=[4],
        )  # fmt: skip
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter, std=0.2)  # the last layers begin at zero
    names = ["T-shirt/top", "Sneaker", "Ankle boot"]
    return DiffusionGenerator(network.eval(), EDM(), class_names=names, has_null_class=True)


@pytest.fixture(scope="session")
def tiny_model(
    tiny_generator: DiffusionGenerator, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The folder of `tiny_generator`."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny_generator.save_pretrained(folder)
    return folder
