"""Forgetting classes: what a model denoises at their labels becomes what it does elsewhere."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from genlab.data.class_names import find_names
from genlab.data.labels import class_index
from genlab.diffusion.condition import NULL_CLASS, Condition
from genlab.diffusion.denoiser import rows
from genlab.diffusion.losses import LOSSES, DenoisingLoss
from genlab.diffusion.preconditioned import PreconditionedDenoiser
from genlab.errors import ConfigError, nearest
from genlab.finetuning.config import ForgetConfig
from genlab.generators.base import Generator
from genlab.generators.diffusion import DiffusionGenerator
from genlab.training.loop.batches import DataMetadata
from genlab.training.objectives.base import Loss, Objective
from genlab.training.objectives.shared import plain

MEAN = "mean"
"""The replacement that is the mean of the kept classes' embeddings."""


class Forgetting:
    """The loss of a run that forgets classes and keeps the others.

    ``L = L_kept + weight E |F(x; sigma, forgotten) - F_base(x; sigma, replacement)|^2``: the base's
    own denoising loss on images of the kept classes, and the squared distance between the network's
    output at a forgotten label and the frozen base's at the replacement, on the same noisy images
    of the kept classes, at noise levels drawn as the base's loss draws them. So no image of a
    forgotten class is looked at.

    What is changed is the output at a label. That is not erasure: what the layers know of the class
    may stay, and come back; see `genlab.eval.forgetting`.

    Source: concept ablation by models (Kumari et al. 2023, arXiv:2303.13516), where the replacement
    is called the anchor; there the frozen network shares its weights with the one in training, and
    the noisy images are drawn from the model. The null class as what a concept is led to is that
    of Gandikota et al. (2023, arXiv:2303.07345) without their negative guidance.

    Args:
        config: what to forget.
        base: the frozen model; the network in training has its number of classes.

    Attributes:
        classes: the forgotten labels.
        kept: the others.
        replacement: one label, `NULL_CLASS` included; None is the mean of the kept classes.

    Raises:
        ConfigError: the base is no conditional diffusion model, or nothing would be kept.
        LabelError: the base knows no such class.
    """

    def __init__(self, config: ForgetConfig, base: Generator) -> None:
        if not isinstance(base, DiffusionGenerator):
            raise ConfigError(
                f"forgetting needs a diffusion model, and the base is of the family "
                f"{base.family!r}; leave forget.classes out"
            )
        if not base.num_classes:
            raise ConfigError(
                "the base is unconditional, so it has no label at which to forget; leave "
                "forget.classes out"
            )
        self.base, self.weight = base, config.weight
        self.classes = tuple(dict.fromkeys(self._label(name) for name in config.classes))
        self.kept = tuple(set(range(base.num_classes)) - set(self.classes))
        if not self.kept:
            raise ConfigError(
                f"forget.classes names all {base.num_classes} classes of the base; leave at least "
                "one to keep"
            )
        self.replacement = self._replacement(config.replacement)
        self._teacher = _Recording(
            base.network,
            base.preconditioning,
            num_classes=base.num_classes,
            has_null_class=base.has_null_class,
        )

    def _label(self, name: str) -> int:
        return class_index(name, self.base.num_classes, self.base.class_names)

    def _replacement(self, name: str | None) -> int | None:
        if name is None:
            return NULL_CLASS if self.base.has_null_class else None
        if name == MEAN:
            return None
        label = self._label(name)
        if label in self.classes:
            raise ConfigError(
                f"forget.replacement is {name!r}, which is itself forgotten; name a kept class, "
                f"{MEAN}, or null for the null class"
            )
        return label

    def data_labels(
        self, data: DataMetadata, names: Sequence[str] | None
    ) -> Int64[Tensor, " classes"]:
        """The base's label of each class of the data, by name; by number where names are missing.

        Args:
            data: of the run.
            names: of its classes.

        Raises:
            ConfigError: the data have no classes, others than the base's, or forgotten ones only.
        """
        base_names = self.base.class_names
        if data.num_classes == 0:
            raise ConfigError(
                "the images have no classes, so those to be kept are not known; give labelled ones"
            )
        if names is None or base_names is None:
            if data.num_classes > self.base.num_classes:
                raise ConfigError(
                    f"the images have {data.num_classes} classes and the base "
                    f"{self.base.num_classes}; forgetting adds none: leave the others out"
                )
            labels = list(range(data.num_classes))
        else:
            labels = []
            for name, number in zip(names, find_names(names, base_names), strict=True):
                if number is None:
                    raise ConfigError(
                        f"{name!r} is no class of the base, and forgetting adds none; "
                        f"{nearest(name, base_names)}"
                    )
                labels.append(number)
        if set(labels) <= set(self.classes):
            raise ConfigError(
                "the images are all of classes to be forgotten; give images of the others, which "
                "the model is to keep"
            )
        return torch.tensor(labels)

    def loss(
        self,
        inner: Objective,
        networks: Mapping[str, nn.Module],
        images: Float[Tensor, "B C H W"],
        labels: Int64[Tensor, " B"],
        generator: torch.Generator,
    ) -> Loss:
        """The loss of one micro-batch; its part ``forget`` is the mean squared distance.

        Args:
            inner: the objective of the base's family.
            networks: see `Objective.compute_loss`.
            images: in [-1, 1]. Where one is of a forgotten class, a kept one of the batch takes its
                place; a batch without any kept image counts nothing.
            labels: of the base's classes.
            generator: where every random number comes from.
        """
        images, labels, any_kept = self._only_kept(images, labels)
        kept = inner.compute_loss(inner.main, networks, images, labels, generator)
        distance = self.distance(inner, networks[inner.main], images, generator)
        mean = distance.detach().mean() * any_kept
        return Loss(
            total=(kept.total + self.weight * distance.sum()) * any_kept,
            mean=kept.mean * any_kept + self.weight * mean,
            parts={**kept.parts, "kept": kept.mean * any_kept, "forget": mean},
        )

    def _only_kept(
        self, images: Float[Tensor, "B C H W"], labels: Int64[Tensor, " B"]
    ) -> tuple[Float[Tensor, "B C H W"], Int64[Tensor, " B"], Float[Tensor, ""]]:
        """The batch filled up with its kept images, and 1 where there is one, else 0."""
        forgotten = torch.isin(labels, torch.tensor(self.classes, device=labels.device))
        order = forgotten.to(torch.int64).argsort(stable=True)
        count = (~forgotten).sum()
        # By index, not by mask: a mask would wait for the device.
        chosen = order[torch.arange(len(labels), device=labels.device) % count.clamp(min=1)]
        return images[chosen], labels[chosen], count.clamp(max=1).to(images.dtype)

    def distance(
        self,
        inner: Any,
        network: nn.Module,
        images: Float[Tensor, "B C H W"],
        generator: torch.Generator,
    ) -> Float[Tensor, "B C H W"]:
        """Squared difference of the outputs of network and base, element by element.

        Args:
            inner: the objective of the base's family.
            network: in training.
            images: in [-1, 1], of any class.
            generator: draws one forgotten label, noise level and noise for each image.
        """
        count, device = len(images), images.device
        drawn = torch.randint(
            len(self.classes), (count,), generator=generator, device=generator.device
        )
        labels = torch.tensor(self.classes, device=device)[drawn.to(device, non_blocking=True)]
        loss = _loss_of(inner)
        with torch.no_grad():
            loss(self._teacher, images, self._anchor(count, device), loss.draw(images, generator))
        x, sigma, target = self._teacher.take()
        student = PreconditionedDenoiser(
            network,
            self.base.preconditioning,
            num_classes=plain(network).label_dim,
            has_null_class=self.base.has_null_class,
        )
        estimate = student(x, sigma, Condition(labels=labels))
        # D is c_skip x + c_out F: the difference is that of what the networks themselves say.
        scale = rows(self.base.preconditioning.coefficients(sigma).c_out, x)
        difference: Tensor = (estimate - target) / scale
        return difference.square().to(images.dtype)

    def _anchor(self, count: int, device: torch.device) -> Condition:
        if self.replacement is not None:
            return Condition(labels=torch.full((count,), self.replacement, device=device))
        weights = torch.zeros(self.base.num_classes, device=device)
        weights[list(self.kept)] = 1 / len(self.kept)
        return Condition(labels=weights.expand(count, -1))

    def to_json(self) -> dict[str, Any]:
        """The forgotten classes, in plain values."""
        replacement = {None: MEAN, NULL_CLASS: None}.get(self.replacement, self.replacement)
        return {
            "classes": list(self.classes),
            "replacement": replacement,
            "weight": self.weight,
        }

    def describe(self) -> str:
        """In words, for the card."""
        names = self.base.class_names
        forgotten = [str(label) if names is None else names[label] for label in self.classes]
        match self.replacement:
            case None:
                into = "the mean of the kept classes"
            case label if label == NULL_CLASS:
                into = "the null class"
            case label:
                into = str(label) if names is None else names[label]
        return f"{', '.join(forgotten)}, drawn as {into} (outputs only: this is no erasure)"


class _Recording(PreconditionedDenoiser):
    """A denoiser that records its last call, whose inputs a loss chooses."""

    _last: tuple[Tensor, Tensor, Tensor] | None = None

    def _evaluate(self, x: Tensor, sigma: Tensor, condition: Condition) -> tuple[Tensor, Tensor]:
        x0, rest = super()._evaluate(x, sigma, condition)
        self._last = (x, sigma, x0)
        return x0, rest

    def take(self) -> tuple[Tensor, Tensor, Tensor]:
        """Noisy images, noise levels and estimates; they are kept no longer."""
        last, self._last = self._last, None
        assert last is not None, "the loss asked nothing"
        return last


def _loss_of(objective: Any) -> DenoisingLoss:
    """The denoising loss of a diffusion objective."""
    options = dict(objective.loss)
    return LOSSES.build(options.pop("name", "edm"), **options)
