"""Classifiers that a generator is tuned by: any function from images to logits.

Legend: B batch, C channels, H and W height and width, K classes, F features.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from genlab.data.labels import class_index
from genlab.errors import ConfigError, LabelError
from genlab.generators.noisy_classifier import NoisyClassifier
from genlab.networks.classifier_cnn import ClassifierCNN

GREY, RGB = 1, 3


@dataclass(frozen=True, kw_only=True)
class ImageClassifier:
    """Tells the class of images, differentiably.

    Attributes:
        name: what it is called in records.
        logits: from images (B, C, H, W) in [-1, 1], of ``image_shape``, to logits (B, K).
        num_classes: K.
        image_shape: (C, H, W) of the images that it takes; None takes all.
        class_names: of its classes, or None.
        features: from the same images to features (B, F), where it has some.
    """

    name: str
    logits: Callable[[Float[Tensor, "B C H W"]], Float[Tensor, "B K"]]
    num_classes: int
    image_shape: tuple[int, int, int] | None = None
    class_names: tuple[str, ...] | None = None
    features: Callable[[Float[Tensor, "B C H W"]], Float[Tensor, "B F"]] | None = None

    def fit(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D h w"]:
        """Bring a generator's images to the classifier's shape.

        Grey becomes RGB by repeating; another size is interpolated bilinearly, with antialiasing.

        Raises:
            ConfigError: the classifier looks at grey images, and these are in colour.
        """
        if self.image_shape is None:
            return images
        channels, *size = self.image_shape
        if images.shape[1] == GREY and channels == RGB:
            images = images.expand(-1, RGB, -1, -1)
        if images.shape[1] != channels:
            raise ConfigError(
                f"the classifier {self.name} looks at images of {channels} channel(s), and the "
                f"generator draws {images.shape[1]}; take a classifier of such images"
            )
        if [*images.shape[2:]] != size:
            images = F.interpolate(images, size, mode="bilinear", antialias=True)
        return images

    def describe_fit(self, image_shape: tuple[int, int, int]) -> str:
        """What `fit` does to images of a shape (C, H, W), in words; empty where it does nothing."""
        if self.image_shape is None or image_shape == self.image_shape:
            return ""
        done = []
        if image_shape[0] != self.image_shape[0]:
            done.append("grey repeated as RGB")
        if image_shape[1:] != self.image_shape[1:]:
            (height, width), (old_height, old_width) = self.image_shape[1:], image_shape[1:]
            done.append(f"{old_width}x{old_height} resized to {width}x{height}")
        return ", ".join(done)

    def find_class(self, name: str) -> int:
        """The number of a class given by name or number.

        Raises:
            LabelError: it knows no such class.
        """
        try:
            return class_index(name, self.num_classes, self.class_names)
        except LabelError as error:
            raise LabelError(f"the classifier {self.name}: {error}") from error


def from_noisy(classifier: NoisyClassifier, name: str) -> ImageClassifier:
    """A classifier of noisy images, told that there is no noise.

    Args:
        classifier: told the smallest noise level that it knows.
        name: see `ImageClassifier`.
    """
    classifier.prepare()
    sigma = torch.tensor(classifier.least_sigma)

    def logits(images: Tensor) -> Tensor:
        return classifier(images, sigma)

    return ImageClassifier(
        name=name,
        logits=logits,
        num_classes=classifier.num_classes,
        image_shape=classifier.image_shape,
        class_names=classifier.class_names,
    )


def from_cnn(network: ClassifierCNN, name: str) -> ImageClassifier:
    """A network that classifies clean images; its pooled features are the features.

    Args:
        network: in evaluation mode.
        name: see `ImageClassifier`.
    """
    names = network.config["class_names"]
    size = network.img_resolution
    return ImageClassifier(
        name=name,
        logits=lambda images: network.classify(network.embed(images).pooled),
        num_classes=network.num_classes,
        image_shape=(network.in_channels, size, size),
        class_names=tuple(names) if names else None,
        features=lambda images: network.embed(images).pooled,
    )
