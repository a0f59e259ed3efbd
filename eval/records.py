"""The records of a leaderboard: one score card, one file, that can be merged in git."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

SCHEMA = 1
"""Version of the format; a reader refuses newer ones."""


@dataclass(frozen=True, kw_only=True)
class Score:
    """One score of one model.

    Attributes:
        value: the score; over repeats, their mean.
        low: lower end of the 95 % interval of the mean, or None where there was one run.
        high: upper end.
        values: of the single repeats.
    """

    value: float
    low: float | None = None
    high: float | None = None
    values: tuple[float, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Record:
    """Scores of one model, sampled in one way, measured in one way.

    Attributes:
        model: its name.
        dataset: what it generates, as the leaderboard groups it: ``fmnist``, ``cifar10``.
        scores: full score name (``fid``, ``fd[cnn-fmnist]``) -> score.
        protocol: all that must be equal for two scores to be ranked together: ``name`` (``edm-50k``
            or None), ``extractor``, ``pixel_rule``, ``reference``, ``count``, ``labels``,
            ``metrics`` (their settings).
        sampling: how the model was sampled: ``sampler`` (solver, schedule, guidance), ``seeds``,
            ``nfe``, ``dtype``, ``ema``.
        provenance: which model: ``family``, ``weights_sha256``, ``parameters``.
        environment: ``versions``, ``device``, ``tf32``, ``processes``.
        cost: ``nfe``, ``seconds_per_image``, ``peak_memory_mib``; any of them may be missing.
        picture: a PNG of samples, as base64 text; empty for none.
        created: UTC time, ISO 8601.
        source: for a published score, where it stands; empty for our own.
        notes: anything else.
    """

    model: str
    dataset: str
    scores: Mapping[str, Score]
    protocol: Mapping[str, Any]
    sampling: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)
    cost: Mapping[str, float] = field(default_factory=dict)
    picture: str = ""
    created: str = ""
    source: str = ""
    notes: str = ""
