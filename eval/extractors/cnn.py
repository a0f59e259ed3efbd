"""Small classifiers as extractors: bundled ones for use without a network, or one's own.

Their features know one data set only, so their scores rank models of that data set and are far from
FID in size; score names carry the extractor: ``fd[cnn-fmnist]``.
"""

import atexit
import json
from collections.abc import Sequence
from contextlib import ExitStack
from functools import cache
from importlib.resources import as_file, files
from pathlib import Path

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from typing_extensions import override

from genlab import compute
from genlab.checkpoints.weights import read_state_dict
from genlab.data.pixels import from_uint8
from genlab.errors import CheckpointError, EvaluationError, reason
from genlab.eval.extractors.base import FeatureExtractor, check_call, exact_float32
from genlab.files import sha256
from genlab.networks.classifier_cnn import ClassifierCNN
from genlab.saving.claims import build_empty, check_config, check_state_dict

WEIGHTS = "diffusion_pytorch_model.safetensors"
"""What ``save_pretrained`` of diffusers' ``ModelMixin`` calls every network's weights."""

SPATIAL_CHANNELS = 8
"""Channels of the middle feature map that make ``spatial``: enough for where things are, and few
enough for a covariance; sFID takes 7 of Inception's 768."""

CPU_IMAGES = 25
"""Images that a thread works on at a time. 10 to 100 were within a fifth of each other: about 1,700
images/s on one core for the bundled networks."""


class CNNExtractor(FeatureExtractor):
    """Features of a `ClassifierCNN` that ``genlab train`` has trained and exported.

    Outputs: ``features``, the last level averaged over the image; ``logits``, one for each class of
    the training data; ``spatial``, the first `SPATIAL_CHANNELS` maps of the middle level.

    Images have the network's own size; no other is taken, since the way of padding or resizing
    would show in the score. Bring Fashion-MNIST's 28x28 images to 32x32 with ``fit=pad``, as the
    model edm-fmnist draws them.

    Args:
        folder: with config.json and safetensors.
        name: what it is called on the protocol card.

    Raises:
        CheckpointError: the folder is incomplete, damaged, or of another network.
    """

    def __init__(self, folder: Path, name: str) -> None:
        folder = Path(folder)
        self.name = name
        self.network = _read_network(folder)
        self.weights_sha256 = sha256(folder / WEIGHTS)
        size, names = self.network.img_resolution, self.network.config["class_names"]
        self.class_names = tuple(names) if names else None
        self.resize = f"none: takes {size}x{size} only"
        channels, height, width = self.network.spatial_shape
        self.outputs = {
            "features": self.network.widths[-1],
            "logits": self.network.num_classes,
            "spatial": min(channels, SPATIAL_CHANNELS) * height * width,
        }
        self.to("cpu")

    @override
    def __call__(
        self, images: UInt8[Tensor, "B 3 H W"], outputs: Sequence[str] = ("features",)
    ) -> dict[str, Float[Tensor, "B _"]]:
        """Compute features.

        Raises:
            EvaluationError: the images are of another size than the network's.
        """
        check_call(self, images, outputs)
        size = self.network.img_resolution
        if images.shape[2:] != (size, size):
            raise EvaluationError(
                f"{self.name} looks at images of {size}x{size}, these are "
                f"{images.shape[3]}x{images.shape[2]}; bring them to that size first, as the "
                "training data were (Fashion-MNIST: pad with black)"
            )
        images = images.to(self.device)
        if self.device.type != "cpu":
            parts = [self._run(images, outputs)]
        else:
            threads, pieces = torch.get_num_threads(), images.split(CPU_IMAGES)
            run = map if threads == 1 or len(pieces) == 1 else compute.workers(threads).map
            parts = list(run(lambda piece: self._run(piece, outputs), pieces))
        return {output: torch.cat([part[output] for part in parts]) for output in outputs}

    @torch.inference_mode()
    def _run(self, images: Tensor, outputs: Sequence[str]) -> dict[str, Tensor]:
        with exact_float32(self.device):
            x = from_uint8(images).contiguous(memory_format=self._memory_format)
            embedding = self.network.embed(x)
            values = {
                "features": embedding.pooled,
                "logits": self.network.classify(embedding.pooled),
                "spatial": embedding.spatial[:, :SPATIAL_CHANNELS].flatten(1),
            }
            return {output: values[output] for output in outputs}

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.network.parameters()).device

    def to(self, device: torch.device | str) -> "CNNExtractor":
        """Move the network; returns the extractor itself."""
        nn.Module.to(self.network, device)
        plan = compute.choose(self.device)
        plan.prepare(self.network)
        self._memory_format = plan.memory_format
        return self


def _read_network(folder: Path) -> ClassifierCNN:
    """The network of an exported folder, in float32 whatever it is stored in.

    What the config claims is held against the weights before a network of that size is made.
    """
    config = folder / "config.json"
    try:
        options = json.loads(config.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(
            f"{folder} holds no classifier: {config.name} cannot be read "
            f"({error.strerror or error}); give a folder that 'genlab train export' wrote"
        ) from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{config} is damaged ({reason(error)}); export it again") from error
    if not isinstance(options, dict) or options.get("_class_name") != "ClassifierCNN":
        raise CheckpointError(
            f"{config} describes no ClassifierCNN; give a folder that 'genlab train export' "
            "wrote of a run with network.name=classifier-cnn"
        )
    arguments = {key: value for key, value in options.items() if not key.startswith("_")}
    check_config(arguments, str(config))
    weights = read_state_dict(folder / WEIGHTS)
    empty = build_empty(
        lambda: ClassifierCNN(**arguments), len(weights), f"{config} is damaged: its network"
    )
    if empty.in_channels != 3:
        raise CheckpointError(
            f"{folder} holds a classifier of images with {empty.in_channels} channel(s); "
            "extractors look at RGB: train it with data.channels=3"
        )
    check_state_dict(empty.state_dict(), weights, f"{folder / WEIGHTS}")
    network = ClassifierCNN(**arguments)
    network.load_state_dict(weights)
    return network.fold().requires_grad_(requires_grad=False)


@cache
def bundled_classifier(name: str) -> Path:
    """The folder of a bundled classifier; it lasts until the program ends."""
    stack = ExitStack()
    atexit.register(stack.close)
    return stack.enter_context(as_file(files("genlab.eval").joinpath("bundled", name)))


def _build(name: str, weights: Path | None) -> CNNExtractor:
    """The bundled classifier, or one's own in its place, which the name then says."""
    bundled = bundled_classifier(name)
    if weights is None:
        return CNNExtractor(bundled, name)
    extractor = CNNExtractor(weights, f"{name}-custom")
    if extractor.weights_sha256 == sha256(bundled / WEIGHTS):
        extractor.name = name
    return extractor


def cnn_fmnist(weights: Path | None = None) -> CNNExtractor:
    """A classifier of Fashion-MNIST, 32x32; ``weights`` is a folder of one's own."""
    return _build("cnn-fmnist", weights)


def cnn_cifar10(weights: Path | None = None) -> CNNExtractor:
    """A classifier of CIFAR-10; ``weights`` is a folder of one's own."""
    return _build("cnn-cifar10", weights)


def cnn(weights: Path | None = None) -> CNNExtractor:
    """A classifier of any images: ``weights`` is the folder that ``genlab train export`` wrote.

    Raises:
        CheckpointError: no folder was given.
    """
    if weights is None:
        raise CheckpointError(
            "the extractor cnn is a classifier of your own; name its folder with --weights, or "
            "take cnn-fmnist or cnn-cifar10"
        )
    return CNNExtractor(weights, "cnn")
