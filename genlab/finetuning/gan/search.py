"""The search for a class vector: moved by Adam until a classifier takes the images for the class.

Legend: B batch, K classes, E numbers of a class vector, Z of a latent, C channels, H and W height
and width.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from genlab.choices import check_choice, check_least
from genlab.data.class_names import find_name
from genlab.diffusion.noise import NoiseStream
from genlab.errors import ConfigError, LabelError
from genlab.finetuning.gan.classifier import ImageClassifier
from genlab.generators.gan import GanGenerator
from genlab.samplers.base import SamplerLike
from genlab.samplers.gan.sampler import GanSampler

STARTS = ("top", "mean", "own")
"""Where the vector of a class may begin, see `RetargetConfig`."""

DISTANCES = ("pixels", "probabilities", "features")
"""How unlike two images are, see `RetargetConfig`."""

JUDGED_LATENTS = 64
"""Latents by whose images a vector is judged; none that a vector is moved by is among them."""

FORK = "retarget"
"""Latents are drawn from forks of the seeds: the images that users draw are others."""


@dataclass(frozen=True, kw_only=True)
class RetargetConfig:
    """How class vectors are moved; the defaults are those of the paper's code.

    Attributes:
        start: where a vector begins: ``top``, at the classes of the base that the classifier takes
            most for the wanted one; ``mean``, at the mean of all classes; ``own``, at the class of
            the same name, to improve one that the base draws badly.
        starts: attempts for each class; the one whose images the classifier likes best is kept.
            ``top`` makes no more attempts than the base has classes.
        rounds: times that fresh latents are drawn.
        steps: of Adam with the latents of a round.
        latents: of a round.
        lr: learning rate of Adam.
        weight_decay: added to the gradient, times the vector.
        noise: standard deviation of what is added to the start of ``mean`` and ``own``.
        diversity: strength of the pull that makes unlike latents draw unlike images; 0 is off, the
            paper takes 0.1.
        distance: of two images: Euclidean over ``pixels``, over the classifier's ``probabilities``
            or over its ``features``.
        seed: of latents and noise.

    Source: Li et al. 2019, "A cost-effective method for improving and re-purposing large,
    pre-trained GANs by fine-tuning their class-embeddings", as their code runs it.
    """

    start: str = "top"
    starts: int = 5
    rounds: int = 10
    steps: int = 20
    latents: int = 10
    lr: float = 0.1
    weight_decay: float = 0.9
    noise: float = 0.1
    diversity: float = 0.0
    distance: str = "pixels"
    seed: int = 0

    def __post_init__(self) -> None:
        check_choice("start", self.start, STARTS)
        check_choice("distance", self.distance, DISTANCES)
        check_least(self, starts=1, rounds=1, steps=1, latents=1)
        check_least(self, weight_decay=0, noise=0, diversity=0, seed=0)
        if not self.lr > 0:
            raise ConfigError(f"lr must be above 0, got {self.lr}")
        if self.diversity and self.latents < 2:
            raise ConfigError("diversity compares the images of two latents; set latents above 1")

    @property
    def steps_in_all(self) -> int:
        """Steps that one attempt takes."""
        return self.rounds * self.steps


@dataclass(frozen=True, kw_only=True)
class FoundClass:
    """The result of the search for one class.

    Attributes:
        name: of the class.
        target: its number in the classifier.
        began: where its vector began, in words.
        start: the vector that it began with, (E,).
        vector: the one that was found, (E,).
        probability_before: that the classifier gives the class at the start, mean over
            `JUDGED_LATENTS` images.
        probability: the same at the end.
    """

    name: str
    target: int
    began: str
    start: Float[Tensor, " E"]
    vector: Float[Tensor, " E"]
    probability_before: float
    probability: float

    def describe(self) -> str:
        """In words, as a command prints it."""
        return (
            f"{self.name}: from {self.began}; the classifier gives its images "
            f"{self.probability_before:.1%} before and {self.probability:.1%} after"
        )


def attempts(generator: GanGenerator, config: RetargetConfig) -> int:
    """Starts that are tried for each class."""
    return min(config.starts, generator.num_classes) if config.start == "top" else config.starts


class ClassSearch:
    """Looks for class vectors of one generator by one classifier.

    Args:
        generator: the base; it is not changed.
        classifier: what says which images are of a class.
        config: how vectors are moved.
        sampler: how latents are drawn; None is the generator's own way.

    Raises:
        ConfigError: the generator has a table of classes in every layer, so that no vector stands
            for a class; the classifier looks at images of other channels, or lacks what a setting
            needs.
    """

    def __init__(
        self,
        generator: GanGenerator,
        classifier: ImageClassifier,
        config: RetargetConfig,
        sampler: SamplerLike,
    ) -> None:
        self.generator, self.classifier, self.config = generator, classifier, config
        self.sampler: GanSampler = generator.build_sampler(sampler)
        classifier.check_shape(generator.image_shape)
        if config.diversity and config.distance == "features" and classifier.features is None:
            raise ConfigError(
                f"the classifier {classifier.name} tells no features; set distance to pixels or "
                "probabilities"
            )
        generator.prepare()
        self.table = class_vectors(generator)
        self.low, self.high = self.table.min(), self.table.max()

    def check(self, names: Sequence[str]) -> None:
        """Check that there are starting points for the vectors of these classes.

        Raises:
            LabelError: each begins at the class of the same name, and there is none.
        """
        if self.config.start == "own":
            for name in names:
                self._own_row(name)

    def find(self, name: str, target: int, on_step: Callable[[int], None]) -> FoundClass:
        """The best vector of all attempts."""
        tried = []
        for start, began in self._starts(name, target):
            vector = self._move(start, target, on_step)
            tried.append(
                FoundClass(
                    name=name,
                    target=target,
                    began=began,
                    start=start,
                    vector=vector,
                    probability_before=self.probability(start, target),
                    probability=self.probability(vector, target),
                )
            )
        return max(tried, key=lambda each: each.probability)

    def _starts(self, name: str, target: int) -> list[tuple[Float[Tensor, " E"], str]]:
        """Vectors to begin with, and what they are in words."""
        config, count = self.config, attempts(self.generator, self.config)
        if config.start == "top":
            scores = [self.probability(row, target, config.latents) for row in self.table]
            order = sorted(range(len(scores)), key=lambda row: -scores[row])[:count]
            return [(self.table[row], self._class_name(row)) for row in order]
        if config.start == "mean":
            begin, began = self.table.mean(0), "the mean of all classes"
        else:
            row = self._own_row(name)
            begin, began = self.table[row], self._class_name(row)
        noise = NoiseStream(range(config.seed, config.seed + count)).fork(f"{FORK} start")
        noisy = begin + config.noise * noise.randn(begin.shape).to(begin)
        return [(each, began) for each in noisy]

    def _own_row(self, name: str) -> int:
        row = find_name(name, self.generator.class_names or ())
        if row is not None:
            return row
        raise LabelError(
            f"the generator has no class {name!r} to begin with; set start to top or mean"
        )

    def _class_name(self, row: int) -> str:
        names = self.generator.class_names
        return f"class {row}" if names is None else names[row]

    def _move(
        self, start: Float[Tensor, " E"], target: int, on_step: Callable[[int], None]
    ) -> Float[Tensor, " E"]:
        config = self.config
        vector = nn.Parameter(start.clone())
        adam = torch.optim.Adam([vector], lr=config.lr, weight_decay=config.weight_decay)
        targets = torch.full((config.latents,), target, device=vector.device)
        for round_ in range(config.rounds):
            z = self._latents(round_ * config.latents, config.latents, f"{FORK} latents")
            for _ in range(config.steps):
                with torch.enable_grad():
                    loss = self._loss(vector, z, targets)
                    [vector.grad] = torch.autograd.grad(loss, vector)
                adam.step()
                on_step(1)
        return vector.detach().clamp(self.low, self.high)

    def _loss(
        self, vector: Tensor, z: Float[Tensor, "B Z"], targets: Int64[Tensor, " B"]
    ) -> Float[Tensor, ""]:
        images = self.classifier.fit(self._draw(vector.clamp(self.low, self.high), z))
        logits = self.classifier.logits(images)
        loss = F.cross_entropy(logits, targets)
        if self.config.diversity:
            loss = loss - self.config.diversity * self._diversity(images, logits, z)
        return loss

    def _diversity(self, images: Tensor, logits: Tensor, z: Tensor) -> Float[Tensor, ""]:
        """Sum over pairs of latents: distance of the images by distance of the latents.

        Latents are independent, so neighbours in the batch are random pairs.
        """
        if self.config.distance == "features":
            assert self.classifier.features is not None
            seen = self.classifier.features(images)
        else:
            seen = images if self.config.distance == "pixels" else logits.softmax(1)
        pairs = len(z) // 2
        a, b = (2 * torch.arange(pairs, device=z.device) + i for i in range(2))
        apart = (seen[a] - seen[b]).flatten(1).norm(dim=1)
        return (apart / (z[a] - z[b]).norm(dim=1)).sum()

    @torch.no_grad()
    def probability(
        self, vector: Float[Tensor, " E"], target: int, count: int = JUDGED_LATENTS
    ) -> float:
        """Mean probability of the target over images of latents that nothing was tuned by."""
        images = self._draw(vector, self._latents(0, count, f"{FORK} judged"))
        logits = self.classifier.logits(self.classifier.fit(images))
        return float(logits.softmax(1)[:, target].mean())

    def _draw(
        self, vector: Float[Tensor, " E"], z: Float[Tensor, "B Z"]
    ) -> Float[Tensor, "B C H W"]:
        images = self.generator.draw_embedding(z, vector.expand(len(z), -1), self.sampler)
        return images.to(torch.float32)

    def _latents(self, first: int, count: int, fork: str) -> Float[Tensor, "B Z"]:
        start = self.config.seed + first
        noise = NoiseStream(range(start, start + count), self.generator.device).fork(fork)
        return self.sampler.latents(noise, self.generator.network.dim_z).to(self.generator.device)


@torch.no_grad()
def class_vectors(generator: GanGenerator) -> Float[Tensor, "K E"]:
    """The vector of every class, in float32.

    Raises:
        ConfigError: the network has a table of classes in every layer in place of one vector.
    """
    classes = torch.arange(generator.num_classes, device=generator.device)
    vectors = generator.network.embed_labels(classes)
    if not vectors.is_floating_point():
        raise ConfigError(
            f"this {type(generator.network).__name__} has a table of classes in every layer, so "
            "no vector stands for a class; take a BigGAN with a shared embedding, or tune it by "
            "images with 'genlab finetune MODEL --data IMAGES'"
        )
    return vectors.to(torch.float32)
