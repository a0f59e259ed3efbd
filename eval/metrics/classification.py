"""Scores by a classifier: are samples of their class, and can a classifier learn from them?"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn
from typing_extensions import override

from genlab.data.pixels import from_uint8
from genlab.errors import ConfigError, EvaluationError
from genlab.eval.classes import translate
from genlab.eval.metrics.base import FeatureMetric, FeatureSet, Need, ScoreInfo
from genlab.eval.metrics.checks import rows_of
from genlab.training.config import Decay, ScheduleConfig, TrainConfig
from genlab.training.loop.batches import DataMetadata, EpochOrder
from genlab.training.loop.schedule import schedule_factor
from genlab.training.loop.seeds import derive, generator
from genlab.training.objectives.classification import ClassifierObjective

TEST_BATCH = 250


def class_consistency(logits: Float[Tensor, "N classes"], labels: Int64[Tensor, " N"]) -> float:
    """The share of images whose largest logit is that of their own class, 0 to 1.

    Args:
        logits: of a classifier, in the order of its classes.
        labels: the class that each image was meant to be.

    Raises:
        EvaluationError: a label is none of the classifier's classes.
    """
    _check_labels(labels, logits.shape[1], "the classifier")
    return float((logits.argmax(1) == labels).double().mean())


@dataclass(frozen=True, kw_only=True)
class ClassConsistency(FeatureMetric):
    """How many samples the extractor's classifier takes for what they were meant to be.

    Its ceiling is not 1 but about the classifier's accuracy on real images, and guidance can take
    it above that: typical images are easier to tell than real ones. It knows nothing of diversity.
    Classes are matched by name where the samples and the classifier have names; otherwise they must
    be numbered as in the classifier's training data.
    """

    scores = (ScoreInfo("consistency", lower_is_better=False),)
    needs = (Need("rows", "logits"), Need("labels"))

    def __call__(self, samples: FeatureSet, reference: FeatureSet | None) -> dict[str, float]:
        """Give ``consistency``; see `FeatureMetric.__call__`."""
        logits = rows_of(samples, "logits", "samples", at_least=1)
        labels = _labels_of(samples, len(logits), "samples")
        labels = translate(
            labels,
            samples.class_names,
            logits.shape[1],
            samples.logit_names,
            "the samples",
            "the classifier",
        )
        return {"consistency": class_consistency(logits, labels)}


@dataclass(frozen=True, kw_only=True)
class ClassificationAccuracyScore(FeatureMetric):
    """Train a classifier on the samples, test it on real images: accuracy, 0 to 1.

    It falls when samples are of the wrong class, unlike real images, or too much alike. Compare it
    with the same number of real images in place of the samples. The recipe is small and fixed: the
    number tells samples apart, and is no accuracy to be proud of (2,000 real images of
    Fashion-MNIST give 82 %, in about half a minute on one core). Take the test images as the
    reference.

    Attributes:
        kimg: thousands of images to train on, repeats of the same ones counted.
        batch_size: images a step.
        width: of the first level of the classifier, a
            `genlab.networks.classifier_cnn.ClassifierCNN`; two more have twice and four times it.
        lr: largest learning rate of AdamW; after a linear warm-up over a tenth of the training it
            falls as half a cosine.
        weight_decay: of AdamW.
        shift: random shift of the training images, in pixels.
        flip: whether half of them are mirrored.
        seed: of weights, order and augmentation.

    Source: Ravuri and Vinyals 2019, arXiv:1905.10887, who train a ResNet-50 on ImageNet.
    """

    scores = (ScoreInfo("cas", lower_is_better=False),)
    needs = (Need("images"), Need("labels"))
    reference_needs = (Need("images"), Need("labels"))

    kimg: float = 25.6
    batch_size: int = 32
    width: int = 32
    lr: float = 3e-3
    weight_decay: float = 0.05
    shift: int = 2
    flip: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("kimg", "batch_size", "lr"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"cas: {name} must be above 0, got {getattr(self, name)}")

    @override
    def check_counts(self, samples: int, reference: int | None) -> None:
        if samples < self.batch_size:
            raise EvaluationError(
                f"a classifier learns from at least one batch of {self.batch_size} samples, got "
                f"{samples}; give more, or write metrics=[{{name: cas, batch_size: {samples}}}]"
            )

    def __call__(self, samples: FeatureSet, reference: FeatureSet | None) -> dict[str, float]:
        """Give ``cas``; see `FeatureMetric.__call__`."""
        images, labels = _images_of(samples, "samples")
        real, real_labels = _images_of(reference, "reference")
        if images.shape[1:] != real.shape[1:]:
            raise EvaluationError(
                f"the samples are {tuple(images.shape[1:])} and the reference "
                f"{tuple(real.shape[1:])} (channels, height, width); bring them to one size"
            )
        self.check_counts(len(images), None)
        assert reference is not None
        num_classes = max(int(real_labels.max()) + 1, len(reference.class_names or ()))
        labels = translate(
            labels,
            samples.class_names,
            num_classes,
            reference.class_names,
            "the samples",
            "the reference",
        )
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        objective = ClassifierObjective(flip=self.flip, shift=self.shift)
        network = self._train(objective, images, labels, num_classes, device)
        starts = range(0, len(real), TEST_BATCH)
        batches = (
            (
                from_uint8(real[i : i + TEST_BATCH].to(device)),
                real_labels[i : i + TEST_BATCH].to(device),
            )
            for i in starts
        )
        return {"cas": objective.evaluate(network, batches)["accuracy"]}

    def _train(
        self,
        objective: ClassifierObjective,
        images: UInt8[Tensor, "N C H W"],
        labels: Int64[Tensor, " N"],
        num_classes: int,
        device: torch.device,
    ) -> nn.Module:
        """The steps of `genlab.training.loop.loop`, without its files and its processes."""
        data = DataMetadata(
            num_images=len(images),
            image_shape=(images.shape[1], images.shape[2], images.shape[3]),
            num_classes=num_classes,
            class_names=None,
        )
        config = TrainConfig(
            schedule=ScheduleConfig(warmup_kimg=self.kimg / 10, decay=Decay.cosine),
            batch_size=self.batch_size,
            duration_kimg=self.kimg,
            seed=self.seed,
        )
        config.optimizer.lr = self.lr
        with torch.random.fork_rng(), torch.enable_grad():
            torch.manual_seed(derive(self.seed, "weights"))
            channels = [self.width, 2 * self.width, 4 * self.width]
            options = {"name": "classifier-cnn", "channels": channels}
            network = objective.build(options, data)["network"].to(device).train()
            optimizer = torch.optim.AdamW(
                network.parameters(), lr=self.lr, weight_decay=self.weight_decay
            )
            order = EpochOrder(len(images), self.seed)
            for step in range(config.num_steps):
                seen = step * self.batch_size
                rows = order(seen, self.batch_size)
                draws = generator(device, self.seed, "draws", step)
                batch = from_uint8(images[rows].to(device))
                loss = objective.compute_loss(
                    "network", {"network": network}, batch, labels[rows].to(device), draws
                )
                optimizer.zero_grad(set_to_none=True)
                (loss.total / self.batch_size).backward()
                for group in optimizer.param_groups:
                    group["lr"] = config.optimizer.lr * schedule_factor(config, seen)
                optimizer.step()
        return network.eval()


def _images_of(
    features: FeatureSet | None, whose: str
) -> tuple[UInt8[Tensor, "N C H W"], Int64[Tensor, " N"]]:
    """Images and their labels, which must be there."""
    if features is None or features.images is None:
        raise EvaluationError(
            f"this metric needs the images of the {whose}, statistics alone are not enough; give "
            "real images with --reference PATH"
        )
    return features.images, _labels_of(features, len(features.images), whose)


def _labels_of(features: FeatureSet, count: int, whose: str) -> Int64[Tensor, " N"]:
    """One label for each image or row."""
    labels = features.labels
    if labels is None or bool((labels < 0).any()):
        raise EvaluationError(
            f"this metric needs the class of every image, and the {whose} have none; leave it out, "
            "or give images with labels"
        )
    if len(labels) != count:
        raise EvaluationError(
            f"the {whose} have {len(labels)} labels for {count} images; give the images themselves "
            "in place of statistics"
        )
    return labels


def _check_labels(labels: Int64[Tensor, " N"], num_classes: int, whose: str) -> None:
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < num_classes:
        raise EvaluationError(
            f"labels lie between {int(labels.min())} and {int(labels.max())}, {whose} has the "
            f"classes 0 ... {num_classes - 1}; use a classifier or reference of the same classes"
        )
