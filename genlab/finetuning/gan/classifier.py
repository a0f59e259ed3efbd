"""Classifiers that a generator is tuned by: any function from images to logits.

Legend: B batch, C channels, H and W height and width, K classes, F features.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from genlab.data.labels import class_index, plain_name
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
        sha256: of its weights, for records; None where it is not known.
    """

    name: str
    logits: Callable[[Float[Tensor, "B C H W"]], Float[Tensor, "B K"]]
    num_classes: int
    image_shape: tuple[int, int, int] | None = None
    class_names: tuple[str, ...] | None = None
    features: Callable[[Float[Tensor, "B C H W"]], Float[Tensor, "B F"]] | None = None
    sha256: str | None = None

    def check_shape(self, image_shape: tuple[int, int, int]) -> None:
        """Refuse images (C, H, W) that `fit` cannot bring to the classifier's shape.

        Raises:
            ConfigError: the classifier looks at grey images, and these are in colour.
        """
        if self.image_shape is None:
            return
        drawn, expected = image_shape[0], self.image_shape[0]
        if drawn != expected and (drawn, expected) != (GREY, RGB):
            raise ConfigError(
                f"the classifier {self.name} looks at images of {expected} channel(s), and the "
                f"generator draws {drawn}; take a classifier of such images"
            )

    def fit(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D h w"]:
        """Bring a generator's images to the classifier's shape.

        Grey becomes RGB by repeating; another size is interpolated bilinearly, with antialiasing.

        Raises:
            ConfigError: the classifier looks at grey images, and these are in colour.
        """
        if self.image_shape is None:
            return images
        _, channels, height, width = images.shape
        self.check_shape((channels, height, width))
        own_channels, *size = self.image_shape
        if channels != own_channels:
            images = images.expand(-1, own_channels, -1, -1)
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

    def read_targets(self, text: str) -> dict[str, int]:
        """Read a list of classes as people write them: ``sandal,bag`` or ``shoe=sandal,bag=8``.

        Args:
            text: names separated by commas; behind ``=`` stands the classifier's class, by name or
                number. Without it the classifier must know the name; a number alone is the
                classifier's class of that number, under its name.

        Returns:
            Name of the new class -> number of the class in the classifier.

        Raises:
            LabelError: the classifier knows no such class, or a name is empty or there twice.
        """
        targets: dict[str, int] = {}
        for part in text.split(","):
            name, equals, target = (word.strip() for word in part.partition("="))
            if not name or (equals and not target):
                raise LabelError(
                    f"classes {text!r}: {part.strip()!r} names no class; write for instance "
                    "sandal,bag=8"
                )
            number = self.find_class(target or name)
            if not equals and self.class_names is not None:
                name = self.class_names[number]
            if plain_name(name) in map(plain_name, targets):
                raise LabelError(f"classes {text!r} name {name!r} twice; leave one out")
            targets[name] = number
        return targets


def from_noisy(classifier: NoisyClassifier, name: str) -> ImageClassifier:
    """A classifier of noisy images, used at its lowest noise level.

    Args:
        classifier: used at the smallest noise level that it knows.
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
        sha256=classifier.sha256(),
    )


def from_cnn(network: ClassifierCNN, name: str, sha256: str | None = None) -> ImageClassifier:
    """A network that classifies clean images; its pooled features are the features.

    Args:
        network: in evaluation mode.
        name: see `ImageClassifier`.
        sha256: of its weights.
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
        sha256=sha256,
    )
