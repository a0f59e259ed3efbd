"""Classifier guidance: towards images that a classifier of noisy images is surer of."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from typing_extensions import override

from genlab.diffusion.condition import Condition
from genlab.diffusion.denoiser import Denoiser, Prediction, Sigma, State
from genlab.errors import ConfigError
from genlab.samplers.guidance.base import ALWAYS, Guidance, GuidanceOptions, When
from genlab.samplers.parts import Part


@runtime_checkable
class Classifier(Part, Protocol):
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


@dataclass(frozen=True, kw_only=True)
class ClassifierGuidance(GuidanceOptions):
    """Add ``scale`` times the gradient of ``log p(class | x)`` to the score.

    Choose it to make classes clearer where the model has no null class, or no classes at all:
    0.5 to 10 for ADM. With `DDPM` and `DDIM` it is ADM's guidance to the letter; with any other
    solver ``D = D + scale sigma^2 grad log p``, the same for small steps.

    Costs a pass through the classifier and back for each network evaluation. A sample of the null
    class is not guided.

    Attributes:
        classifier: a bundled name or the folder of a classifier, or a `Classifier` itself.
        scale: >= 0; 0 is off.
        with_class: whether the model is asked with the class, too. Otherwise a model with a null
            class is used as one without classes, outside the window as well.

    Source: Dhariwal and Nichol (arXiv:2105.05233), Section 4; the gradient is taken at x, as in the
    official code.
    """

    parts: ClassVar[Mapping[str, str]] = {"classifier": "classifier"}
    suits: ClassVar[str] = "any, also without classes"
    example: ClassVar[Mapping[str, Any]] = {"classifier": "classifier-fmnist", "scale": 1}

    classifier: Any
    scale: float = 1.0
    with_class: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.scale < math.inf:
            raise ConfigError(f"classifier guidance needs scale >= 0, got {self.scale}")
        if not isinstance(self.classifier, str | Classifier):
            raise ConfigError(
                "classifier guidance needs classifier: a name, a folder or a NoisyClassifier, got"
                f" {type(self.classifier).__name__}"
            )

    def __call__(self, denoiser: Denoiser) -> Guidance:
        """Wrap a denoiser.

        Raises:
            ConfigError: model and classifier know different numbers of classes, or the model is to
                be asked without its class and has no null class.
        """
        count = self.classifier.num_classes
        if denoiser.num_classes not in (0, count):
            raise ConfigError(
                f"the classifier knows {count} classes and the model {denoiser.num_classes}; take a"
                " classifier that was trained on the model's data"
            )
        if not (self.with_class or denoiser.has_null_class or denoiser.num_classes == 0):
            raise ConfigError(
                "with_class: false asks the model without its class, and this one never saw an "
                "image without it (label dropout); leave it out"
            )
        return ClassifierGuidedDenoiser(
            denoiser, self.classifier, self.scale, with_class=self.with_class, when=self.when
        )


class ClassifierGuidedDenoiser(Guidance):
    """A denoiser under classifier guidance; see `ClassifierGuidance`."""

    def __init__(
        self,
        inner: Denoiser,
        classifier: Classifier,
        scale: float,
        *,
        with_class: bool = True,
        when: When = ALWAYS,
    ) -> None:
        super().__init__(inner, when=when, others=[classifier])
        self.classifier = classifier
        self.scale = scale
        self.with_class = with_class
        self.num_classes = classifier.num_classes

    @override
    def guide(self, x: State, sigma: Sigma, conditions: Sequence[Condition]) -> list[Prediction]:
        """The classifier's gradient comes beside the estimate.

        Raises:
            ConfigError: there are no labels to be guided to.
        """
        predictions = self._ask(x, sigma, conditions)
        if self.scale == 0:
            return predictions
        return [
            self._add_score(prediction, x, sigma, condition)
            for prediction, condition in zip(predictions, conditions, strict=True)
        ]

    @override
    def predict_each(
        self, x: State, sigma: Sigma, conditions: Sequence[Condition]
    ) -> list[Prediction]:
        """Outside the window the model stays without its class."""
        if self.active:
            return super().predict_each(x, sigma, conditions)
        return self._ask(x, sigma, conditions)

    def _ask(self, x: State, sigma: Sigma, conditions: Sequence[Condition]) -> list[Prediction]:
        if not self.with_class:
            conditions = [condition.null() for condition in conditions]
        return self.inner.predict_each(x, sigma, conditions)

    def _add_score(
        self, prediction: Prediction, x: State, sigma: Sigma, condition: Condition
    ) -> Prediction:
        if condition.labels is None:
            raise ConfigError(
                "classifier guidance needs the class that each sample is guided to; give labels"
            )
        score = self.scale * class_gradient(self.classifier, x, sigma, condition.labels)
        return replace(
            prediction, score=score if prediction.score is None else prediction.score + score
        )


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
