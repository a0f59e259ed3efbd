"""The schema of ``genlab eval``: what a protocol in configs/eval/ may say."""

from dataclasses import dataclass, field
from typing import Any

from genlab.choices import ALPHAS, DTYPES, check_choice, check_least
from genlab.errors import ConfigError


@dataclass(kw_only=True)
class EvalConfig:
    """One evaluation.

    The first part is the protocol: scores are ranked together only where all of it agrees. The
    second says how the model is sampled, the third how this machine does the work.

    Attributes:
        extractor: name of a feature extractor; ``classifier`` is the bundled one of the data set.
        metrics: names or mappings with a ``name`` and options, see `genlab.eval.metrics.base`.
        reference: ``train`` or ``test`` of a known data set, a file of statistics, or real images;
            null where no metric needs one.
        reference_split: part of the real images, where there are several.
        alpha: what lies behind transparent images, scored or of the reference: ``black`` or
            ``white``; ``refuse`` takes none.
        count: images to draw from a model; a folder of images is scored whole.
        labels: ``random`` (each sample draws its own class) or ``balanced``.
        repeats: independent draws of ``count`` images; the score is their mean, with an interval.
        dataset: what the model generates; null takes that of its card.
        first_seed: seeds are first_seed, first_seed + 1, ...; repeats go on from there.
        sampler: changes to the model's own sampler, or the name of a sampler preset.
        dtype: what the network computes in.
        weights: a local file for the extractor; null takes the bundled one or fetches it.
        batch_size: images at a time; null is 50 on a CPU and 250 on a GPU.
        device: null is the best there is.
        compile: whether to compile the network first.
    """

    extractor: str = "inception"
    metrics: list[Any] = field(default_factory=lambda: ["fd"])
    reference: str | None = "train"
    reference_split: str = "train"
    alpha: str = "refuse"
    count: int = 5000
    labels: str = "random"
    repeats: int = 1
    dataset: str | None = None
    first_seed: int = 0
    sampler: dict[str, Any] = field(default_factory=dict)
    dtype: str = "float32"
    weights: str | None = None
    batch_size: int | None = None
    device: str | None = None
    compile: bool = False

    def __post_init__(self) -> None:
        check_least(self, count=2, repeats=1, first_seed=0, batch_size=1)
        check_choice("alpha", self.alpha, ALPHAS)
        if self.labels not in ("random", "balanced"):
            raise ConfigError(f"labels must be random or balanced, got {self.labels!r}")
        check_choice("dtype", self.dtype, DTYPES)
        if not self.metrics:
            raise ConfigError("metrics is empty; name at least one, for instance fd")
