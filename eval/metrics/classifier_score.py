"""The classifier score: how sure a classifier is of each sample, and how many classes it sees."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor
from typing_extensions import override

from genlab.errors import ConfigError, EvaluationError
from genlab.eval.metrics.base import FeatureMetric, FeatureSet, Need, ScoreInfo
from genlab.eval.metrics.checks import rows_of


def classifier_score(logits: Float[Tensor, "N classes"]) -> float:
    """``exp(mean KL(p(y | x) || p(y)))``: 1 to the number of classes, higher is better.

    A probability that underflows to 0 adds nothing, as its limit; guided-diffusion's evaluator
    writes ``p log p`` as it stands and gets NaN.

    Args:
        logits: finite, of all the samples together.

    Source: Salimans et al. 2016, arXiv:1606.03498, Section 4.
    """
    log_p = logits.double().log_softmax(1)
    p = log_p.exp()
    # Where p > 0 the marginal is, too.
    ratio = torch.where(p > 0, log_p - p.mean(0).log(), 0.0)
    return float((p * ratio).sum(1).mean().exp())


@dataclass(frozen=True, kw_only=True)
class ClassifierScore(FeatureMetric):
    """The classifier score (with Inception-2015's 1008 bias-free logits: the Inception Score).

    The score of N samples is biased upwards in small chunks and says nothing about real images: a
    generator that shows one perfect image of each class reaches the maximum.

    The official tools disagree about the chunks, and so about the number:

    - ``torch-fidelity`` shuffles the samples by ``RandomState(seed)`` and cuts them into ``splits``
      chunks of equal size; mean and population standard deviation over chunks;
    - ``adm`` (guided-diffusion) takes chunks of ``split_size`` in the order of the file, the last
      one as it comes and with equal weight; the mean alone. With samples sorted by class its
      chunks see few classes each, and the score drops.

    Both use Inception's logits without their bias.

    Attributes:
        variant: ``torch-fidelity`` or ``adm``.
        splits: chunks, for torch-fidelity.
        shuffle: whether to shuffle first, for torch-fidelity.
        seed: of the shuffling.
        split_size: samples in a chunk, for adm.
    """

    variant: str = "torch-fidelity"
    splits: int = 10
    shuffle: bool = True
    seed: int = 2020
    split_size: int = 5000

    scores = (
        ScoreInfo("cs", lower_is_better=False, official_name="is"),
        ScoreInfo("cs_std", lower_is_better=None, official_name="is_std", detail=True),
    )
    needs = (Need("rows", "logits"),)

    def __post_init__(self) -> None:
        if self.variant not in ("torch-fidelity", "adm"):
            raise ConfigError(f"variant must be torch-fidelity or adm, got {self.variant!r}")
        for name in ("splits", "split_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")

    @override
    def check_counts(self, samples: int, reference: int | None) -> None:
        if self.variant != "adm" and samples < self.splits:
            raise EvaluationError(
                f"{samples} samples cannot be cut into {self.splits} chunks; give more samples, or "
                f"write metrics=[{{name: cs, splits: {samples}}}]"
            )

    def __call__(self, samples: FeatureSet, reference: FeatureSet | None) -> dict[str, float]:
        """Compute ``cs`` and, for torch-fidelity, ``cs_std``."""
        logits = rows_of(samples, "logits", "samples")
        if self.variant == "adm":
            chunks = logits.split(self.split_size)
            return {"cs": float(_scores(chunks).mean())}
        self.check_counts(len(logits), None)
        scores = _scores(self._chunks(logits))
        return {"cs": float(scores.mean()), "cs_std": float(scores.std(correction=0))}

    def _chunks(self, logits: Float[Tensor, "N classes"]) -> tuple[Tensor, ...]:
        count = len(logits)
        if self.shuffle:
            order = np.random.RandomState(self.seed).permutation(count)
            logits = logits[torch.from_numpy(order).to(logits.device)]
        ends = [i * count // self.splits for i in range(1, self.splits)]
        return logits.tensor_split(ends)


def _scores(chunks: tuple[Tensor, ...]) -> Float64[Tensor, " chunks"]:
    return torch.tensor([classifier_score(chunk) for chunk in chunks], dtype=torch.float64)
