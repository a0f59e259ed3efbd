"""Classifier guidance: towards images that a classifier of noisy images is surer of."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from genlab.diffusion.condition import Condition
from genlab.diffusion.denoiser import Denoiser, Prediction
from genlab.errors import ConfigError
from genlab.registry import Registry
from genlab.samplers.base import Guidance


@runtime_checkable
class Classifier(Protocol):
    """What guidance follows; `genlab.generators.noisy_classifier.NoisyClassifier` is one."""

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        ...

    def __call__(
        self, x: Float[Tensor, "B C H W"], sigma: Float[Tensor, ""] | Float[Tensor, " B"]
    ) -> Float[Tensor, "B K"]:
        """Logits of noisy images in the unscaled frame."""
        ...

    def to(self, device: Any = None, dtype: Any = None) -> Any:
        """Move to a device."""
        ...


CLASSIFIERS: Registry[Callable[[str], Classifier]] = Registry(
    "genlab.classifiers",
    {"noisy-classifier": "genlab.checkpoints.classifiers:load_classifier"},
    kind="loader of classifiers",
)
"""How a classifier that a config names is found; what reads files lives above this room."""


@dataclass(frozen=True, kw_only=True)
class ClassifierGuidance:
    """Add ``scale`` times the gradient of ``log p(class | x)`` to the score.

    Choose it to make classes clearer where the model has no null class, or no classes at all:
    0.5 to 10 for ADM. With `DDPM` and `DDIM` it is ADM's guidance to the letter; with any other
    solver ``D = D + scale sigma^2 grad log p``, the same for small steps.

    Costs a pass through the classifier and back for each network evaluation. A sample of the null
    class is not guided.

    Attributes:
        classifier: a bundled name or the folder of a classifier, or a `Classifier` itself.
        scale: >= 0; 0 is off.

    Source: Dhariwal and Nichol (arXiv:2105.05233), Section 4; the gradient is taken at x, as in the
    official code.
    """

    classifier: Any
    scale: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.scale < math.inf:
            raise ConfigError(f"classifier guidance needs scale >= 0, got {self.scale}")
        if not isinstance(self.classifier, str | Classifier):
            raise ConfigError(
                "classifier guidance needs classifier: a name, a folder or a NoisyClassifier, got"
                f" {type(self.classifier).__name__}"
            )

    @cached_property
    def model(self) -> Classifier:
        """The classifier, loaded once."""
        if not isinstance(self.classifier, str):
            classifier: Classifier = self.classifier
            return classifier
        return CLASSIFIERS["noisy-classifier"](self.classifier)

    def __call__(self, denoiser: Denoiser) -> Guidance:
        """Wrap a denoiser.

        Raises:
            ConfigError: model and classifier know different numbers of classes.
        """
        known = self.model.num_classes
        if denoiser.num_classes not in (0, known):
            raise ConfigError(
                f"the classifier knows {known} classes and the model {denoiser.num_classes}; take a"
                " classifier that was trained on the model's data"
            )
        return ClassifierGuidedDenoiser(denoiser, self.model, self.scale)


class ClassifierGuidedDenoiser(Guidance):
    """A denoiser under classifier guidance; see `ClassifierGuidance`."""

    def __init__(self, inner: Denoiser, classifier: Classifier, scale: float) -> None:
        super().__init__(inner)
        self.classifier = classifier
        self.scale = scale
        self.num_classes = classifier.num_classes

    def __call__(
        self,
        x: Float[Tensor, "B C H W"],
        sigma: Float[Tensor, ""] | Float[Tensor, " B"],
        condition: Condition,
    ) -> Float[Tensor, "B C H W"]:
        """Denoise; see `Denoiser.__call__`."""
        return self.predict(x, sigma, condition).estimate(sigma)

    def predict(
        self,
        x: Float[Tensor, "B C H W"],
        sigma: Float[Tensor, ""] | Float[Tensor, " B"],
        condition: Condition,
    ) -> Prediction:
        """Denoise, with the classifier's gradient beside the estimate.

        Raises:
            ConfigError: there are no labels to be guided to.
        """
        said = self.inner.predict(x, sigma, condition)
        if self.scale == 0:
            return said
        if condition.labels is None:
            raise ConfigError(
                "classifier guidance needs the class that each sample is guided to; give labels"
            )
        self.classifier.to(x.device)
        score = self.scale * class_gradient(self.classifier, x, sigma, condition.labels)
        whole = score if said.score is None else said.score + score
        return Prediction(x0=said.x0, variance=said.variance, score=whole)


def class_gradient(
    classifier: Classifier,
    x: Float[Tensor, "B C H W"],
    sigma: Float[Tensor, ""] | Float[Tensor, " B"],
    labels: Int64[Tensor, " B"] | Float[Tensor, "B K"],
) -> Float[Tensor, "B C H W"]:
    """``grad_x log p(class | x; sigma)`` of each sample, in the dtype of ``x``; 0 for no class."""
    if labels.is_floating_point():
        targets = labels.to(x.device).float()
    else:
        classes = torch.arange(classifier.num_classes, device=x.device)
        targets = (labels.to(x.device)[:, None] == classes).float()
    with torch.enable_grad():
        noisy = x.detach().to(torch.float32).requires_grad_()
        log_p = classifier(noisy, sigma).log_softmax(1)
        [gradient] = torch.autograd.grad((targets * log_p).sum(), noisy)
    return gradient.to(x.dtype)
