"""A denoiser that can be watched: it passes everything on to the one inside."""

from torch import Tensor

from genlab.diffusion.condition import Condition
from genlab.diffusion.denoiser import Denoiser, Prediction, StepInfo


class Watching(Denoiser):
    """Stands where the lowest denoiser does: subclasses note what it is asked."""

    def __init__(self, inner: Denoiser) -> None:
        self.inner = inner
        self.noise_levels = inner.noise_levels
        self.num_classes = inner.num_classes
        self.has_null_class = inner.has_null_class

    def __call__(self, x: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        return self.inner(x, sigma, condition)

    def predict(self, x: Tensor, sigma: Tensor, condition: Condition) -> Prediction:
        return self.inner.predict(x, sigma, condition)

    def begin_step(self, step: StepInfo) -> None:
        self.inner.begin_step(step)

    @property
    def evaluations(self) -> int:  # type: ignore[override]  # counted inside
        return self.inner.evaluations
