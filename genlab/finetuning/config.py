"""The configuration of a fine-tuning run: a training run's settings, a base and a method."""

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from genlab.errors import ConfigError, nearest
from genlab.finetuning.class_tables.origins import RULES
from genlab.training.config import (
    EmaConfig,
    OptimizerConfig,
    OutputConfig,
    ScheduleConfig,
    TrainConfig,
)


@dataclass(kw_only=True)
class ClassesConfig:
    """The class table of the model, where the data have other classes than the base.

    Attributes:
        initial: where a new class begins, see
            `genlab.finetuning.class_tables.origins.class_origins`: ``mean`` of the base's classes,
            ``nearest`` by name, ``random``, or a mapping from every new class to the base's
            (``{boot: ankle boot}``). The mean is the default because it draws images of the base
            from the first step and takes no name for a likeness.
        number: how many classes the data must have, to find out that they have not; null takes
            what is there.
    """

    initial: Any = "mean"
    number: int | None = None

    def __post_init__(self) -> None:
        if isinstance(self.initial, str):
            if self.initial not in RULES:
                raise ConfigError(
                    f"classes.initial is no {self.initial!r}: write a mapping from new classes to "
                    f"the base's, or a rule; {nearest(self.initial, RULES)}"
                )
        elif not isinstance(self.initial, dict) or not self.initial:
            raise ConfigError(
                f"classes.initial takes {', '.join(RULES)} or a mapping from new classes to the "
                f"base's, not {self.initial!r}"
            )
        if self.number is not None and self.number < 0:
            raise ConfigError(f"classes.number must be at least 0, got {self.number}")


@dataclass(kw_only=True)
class CopyingConfig:
    """When previews count as copies of training images; see `genlab.finetuning.copying`.

    Attributes:
        check: whether previews are compared with the training images.
        ratio: a preview is a copy if it is nearer to its nearest training image than this share of
            its mean distance to the next ones.
        warn_share: a warning is given once more than this share of the previews are copies, beyond
            the share of training images that have such a copy among themselves.
    """

    check: bool = True
    ratio: float = 0.5
    warn_share: float = 0.2

    def __post_init__(self) -> None:
        for name in ("ratio", "warn_share"):
            value = getattr(self, name)
            if not 0 < value < 1:
                raise ConfigError(f"copying.{name} must lie between 0 and 1, got {value}")


@dataclass(kw_only=True)
class ForgetConfig:
    """Classes that the model is to draw no more; see `genlab.finetuning.forgetting.Forgetting`.

    Attributes:
        classes: the base's, by name or number; empty forgets nothing.
        replacement: what is drawn at their labels: a kept class, ``mean`` of the kept ones, or null
            for the null class (for a base without one, the mean).
        weight: of the distance from it beside the loss of the kept classes, > 0.
    """

    classes: list[str] = field(default_factory=list)
    replacement: str | None = None
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not self.weight > 0:
            raise ConfigError(f"forget.weight must be above 0, got {self.weight}")


@dataclass(kw_only=True)
class FinetuneConfig(TrainConfig):
    """A fine-tuning run.

    The defaults are for sixty photographs up to some ten thousand images: 2,000 steps of 32. The
    averages warm up: their half-life is 5 % of the images seen, so that a short run's average
    follows it.

    Attributes:
        base: the model to begin from: a bundled one, one of the zoo, or a path.
        method: ``name`` (see `genlab.finetuning.methods.base.METHODS`) and its options.
        classes: of the data, where they are not the base's.
        copying: when previews count as copies of training images.
        forget: classes of the base to be forgotten; the table keeps their labels, and the data are
            those of the others.
        resolution: height and width that the base is brought to before training; null keeps its
            own.
        network: must stay empty, since the base is the network.
        objective: options of the objective of the base's family; what is left out follows from the
            base, for instance a loss that fits its preconditioning.
        optimizer: as in training.
        schedule: as in training.
        ema: averages of what trains.
        output: as in training; a preview is drawn before the first step, too.
        batch_size: as in training.
        duration_kimg: as in training.
    """

    base: str = MISSING
    method: dict[str, Any] = field(default_factory=lambda: {"name": "diffit"})
    classes: ClassesConfig = field(default_factory=ClassesConfig)
    copying: CopyingConfig = field(default_factory=CopyingConfig)
    forget: ForgetConfig = field(default_factory=ForgetConfig)
    resolution: int | None = None
    network: dict[str, Any] = field(default_factory=dict)
    objective: dict[str, Any] = field(default_factory=dict)
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(lr=1e-3))
    schedule: ScheduleConfig = field(default_factory=lambda: ScheduleConfig(warmup_kimg=3.2))
    ema: EmaConfig = field(default_factory=lambda: EmaConfig(halflife_kimg=20.0, sigma_rels=[]))
    output: OutputConfig = field(
        default_factory=lambda: OutputConfig(
            log_steps=25,
            state_minutes=2.0,
            snapshot_kimg=16.0,
            preview_kimg=16.0,
            preview_count=16,
        )
    )
    batch_size: int = 32
    duration_kimg: float = 64.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.network:
            raise ConfigError(
                f"network.{next(iter(self.network))} has no effect in fine-tuning, where the base "
                "is the network; leave it out"
            )
        if "name" in self.objective:
            raise ConfigError(
                "objective.name has no effect in fine-tuning, where it follows from the base; "
                "leave it out"
            )
        if self.resolution is not None and self.resolution < 1:
            raise ConfigError(f"resolution must be at least 1, got {self.resolution}")
