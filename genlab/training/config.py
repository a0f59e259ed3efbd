"""The configuration of a training run: a dataclass for each part, presets in configs/train/."""

from dataclasses import dataclass, field, fields, replace
from enum import Enum
from typing import Any, cast

from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from genlab.choices import Alpha, Fit
from genlab.errors import ConfigError, nearest


class Precision(Enum):
    """What the network computes in while it trains; its weights are float32 in any case."""

    no = "no"
    bf16 = "bf16"
    fp16 = "fp16"


class Decay(Enum):
    """The decay of the learning rate after the warm-up."""

    constant = "constant"
    cosine = "cosine"
    inv_sqrt = "inv_sqrt"
    exponential = "exponential"


class SnapshotDtype(Enum):
    """What averaged weights are stored in."""

    float16 = "float16"
    float32 = "float32"


@dataclass(kw_only=True)
class DataConfig:
    """The training images.

    Attributes:
        path: a folder of images, an EDM-style zip, a folder with idx files, or an npz file.
        split: part of the set, where it has several.
        image_size: height and width; null takes that of the images.
        channels: 1 or 3; null takes those of the images.
        fit: what to do with images of another size.
        alpha: what lies behind transparent images; they are refused unless it is said.
        labels: whether to train on classes.
        max_memory_gib: sets up to this size are read into memory once; larger ones are read from
            disk as needed.
        num_workers: processes that read, for a set that does not fit.
    """

    path: str = MISSING
    split: str = "train"
    image_size: int | None = None
    channels: int | None = None
    fit: Fit = Fit.none
    alpha: Alpha = Alpha.refuse
    labels: bool = True
    max_memory_gib: float = 4.0
    num_workers: int = 4


@dataclass(kw_only=True)
class ValidationConfig:
    """Validation images, for objectives that have a score.

    They are read as `DataConfig` says (size, channels, fit) and looked at each time snapshots are
    stored, with the average by half-life; the scores stand in log.jsonl and on the model card.

    Attributes:
        path: where they lie; null is data.path.
        split: part of the set, where it has several. Neither path nor split: nothing is validated.
    """

    path: str | None = None
    split: str | None = None


@dataclass(kw_only=True)
class StoppingConfig:
    """Early stopping: the run ends once a score no longer improves.

    The averages of the best evaluation are kept among the snapshots, and a fine-tuning run's folder
    holds its adapter. The same command again does nothing, unless it brings more patience.

    Attributes:
        metric: a score in log.jsonl: one on held-out images (see `ValidationConfig`), or of an
            evaluation that is handed in. Null never stops early.
        patience: so many evaluations in a row without an improvement end the run.
        min_delta: an improvement is better by more than so much.
    """

    metric: str | None = None
    patience: int = 3
    min_delta: float = 0.0

    def __post_init__(self) -> None:
        _require(self.patience >= 1, "stopping.patience >= 1", self.patience)
        _require(self.min_delta >= 0, "stopping.min_delta >= 0", self.min_delta)


@dataclass(kw_only=True)
class OptimizerConfig:
    """Adam with decoupled weight decay.

    Attributes:
        lr: learning rate after the warm-up.
        beta1: decay of the running mean of gradients.
        beta2: decay of the running mean of squared gradients.
        eps: added to its root.
        weight_decay: 0 makes it plain Adam.
        max_grad_norm: gradients of a larger norm are scaled down to it; null leaves them.
        zero_nonfinite_gradients: replace gradients that are not finite as EDM does (nan by 0,
            infinity by 1e5), so that one bad gradient does not end a run. A loss that is not finite
            ends it in any case.
        networks: where an objective trains several: name -> settings that differ for this one, for
            instance ``{discriminator: {lr: 4e-4}}``.
    """

    lr: float = 1e-3
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0
    max_grad_norm: float | None = None
    zero_nonfinite_gradients: bool = True
    networks: dict[str, Any] = field(default_factory=dict)

    def of(self, network: str) -> "OptimizerConfig":
        """The settings of one network.

        Raises:
            ConfigError: one that is its own is unknown or of another type.
        """
        alike = replace(self, networks={})
        own = self.networks.get(network, {})
        where = f"optimizer.networks.{network}"
        if not isinstance(own, dict):
            raise ConfigError(f"{where} takes a mapping (KEY: VALUE), not {own!r}")
        names = [f.name for f in fields(self) if f.name != "networks"]
        for key in own:
            if key not in names:
                raise ConfigError(f"there is no setting {where}.{key}; {nearest(key, names)}")
        try:
            merged = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(alike), own))
        except OmegaConfBaseException as error:
            raise ConfigError(f"{where}: {str(error).splitlines()[0]}") from error
        return cast(OptimizerConfig, merged)


@dataclass(kw_only=True)
class ScheduleConfig:
    """The learning rate over the run, as a factor of ``optimizer.lr``.

    Attributes:
        warmup_kimg: thousands of images over which it grows from 0.
        decay: what follows.
        decay_kimg: ``cosine``: where it has come down to ``final``; null is the end of the run.
            ``inv_sqrt``: up to here it is constant, after it falls with the root of the images
                seen; null is 1/4 of the run.
            ``exponential``: over so many it halves, from the first image on; null is 1/4 of the
                run.
        final: the factor at the end of ``cosine``.
    """

    warmup_kimg: float = 10_000.0
    decay: Decay = Decay.constant
    decay_kimg: float | None = None
    final: float = 0.0


@dataclass(kw_only=True)
class EmaConfig:
    """Averages of the weights, which are what samples are drawn with.

    Attributes:
        halflife_kimg: half-life of the exponential average (EDM), in thousands of images.
        rampup_ratio: the half-life is at most this share of the images seen so far; null switches
            that off.
        start_kimg: up to so many thousand images the exponential average just follows the weights.
        sigma_rels: relative widths of the power-function averages (EDM2, arXiv:2312.02696); with
            two of them any other width can be reconstructed after training. Empty tracks none.
    """

    halflife_kimg: float = 500.0
    rampup_ratio: float | None = 0.05
    start_kimg: float = 0.0
    sigma_rels: list[float] = field(default_factory=lambda: [0.05, 0.10])


@dataclass(kw_only=True)
class OutputConfig:
    """What a run writes, and how often; it changes nothing of the result.

    Attributes:
        log_steps: a line in log.jsonl every so many steps.
        state_minutes: a checkpoint every so many minutes (and at the end, and when asked to
            stop).
        keep_states: so many of the latest states are kept.
        snapshot_kimg: averaged weights are stored every so many thousand images; null stores them
            at the end only.
        snapshot_dtype: what they are stored in.
        preview_kimg: a grid of samples every so many thousand images, where a generator is
            trained; null draws none.
        preview_count: samples in it; their seeds are 0, 1, 2, ... and their classes take turns.
        preview_sampler: how they are drawn, what is left out is the model's default.
        tensorboard: write logs for TensorBoard too; null does so when it is installed.
        trackers: others of accelerate's trackers that get numbers and previews: ``wandb``,
            ``trackio``, ``mlflow``, ``comet_ml``, ... Each is a package of its own.
    """

    log_steps: int = 50
    state_minutes: float = 10.0
    keep_states: int = 2
    snapshot_kimg: float | None = 100.0
    snapshot_dtype: SnapshotDtype = SnapshotDtype.float16
    preview_kimg: float | None = 100.0
    preview_count: int = 40
    preview_sampler: dict[str, Any] = field(default_factory=dict)
    tensorboard: bool | None = None
    trackers: list[str] = field(default_factory=list)


@dataclass(kw_only=True)
class TrainConfig:
    """A training run.

    Attributes:
        data: the images.
        network: ``name`` (see `genlab.training.objectives.base.NETWORKS`) and its constructor's
            arguments; what follows from the data (resolution, channels, classes, augmentation
            labels) may be left out.
        objective: ``name`` (see `genlab.training.objectives.base.OBJECTIVES`) and its options, for
            instance those of `genlab.training.objectives.diffusion.DiffusionObjective`.
        validation: images to judge the run by.
        stopping: whether and when the run ends early.
        optimizer: of the networks in training.
        schedule: of the learning rate.
        ema: averages of the weights.
        output: logs, states, snapshots, previews.
        batch_size: images a step, over all processes and accumulated parts together.
        gradient_accumulation: each process cuts its share of the batch into so many parts, to save
            memory. Layers that look at the batch see these parts.
        duration_kimg: thousands of images to train on.
        mixed_precision: what the network computes in.
        gradient_checkpointing: save memory, pay with time.
        seed: of everything random.
        class_names: one for each class; null takes those of the data.
        sampler: how a trained generator is sampled by default, stored with it.
        license: of the data and the model, for the model card; recipes leave it to who trains.
    """

    data: DataConfig = field(default_factory=DataConfig)
    network: dict[str, Any] = field(default_factory=lambda: {"name": "song-unet"})
    objective: dict[str, Any] = field(default_factory=lambda: {"name": "diffusion"})
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    stopping: StoppingConfig = field(default_factory=StoppingConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    ema: EmaConfig = field(default_factory=EmaConfig)
    output: OutputConfig = field(default_factory=OutputConfig)
    batch_size: int = 128
    gradient_accumulation: int = 1
    duration_kimg: float = MISSING
    mixed_precision: Precision = Precision.no
    gradient_checkpointing: bool = False
    seed: int = 0
    class_names: list[str] | None = None
    sampler: dict[str, Any] = field(default_factory=dict)
    license: str = "unknown"

    def __post_init__(self) -> None:
        _require(self.batch_size >= 1, "batch_size >= 1", self.batch_size)
        _require(
            self.gradient_accumulation >= 1,
            "gradient_accumulation >= 1",
            self.gradient_accumulation,
        )
        _require(self.duration_kimg > 0, "duration_kimg > 0", self.duration_kimg)
        _require(0 <= self.seed < 2**63, "0 <= seed < 2**63", self.seed)
        for name in ("", *self.optimizer.networks):
            lr = self.optimizer.of(name).lr
            _require(lr > 0, f"optimizer.{f'networks.{name}.' if name else ''}lr > 0", lr)
        _require(
            self.schedule.warmup_kimg >= 0, "schedule.warmup_kimg >= 0", self.schedule.warmup_kimg
        )
        _require(self.ema.halflife_kimg >= 0, "ema.halflife_kimg >= 0", self.ema.halflife_kimg)
        _require(self.ema.start_kimg >= 0, "ema.start_kimg >= 0", self.ema.start_kimg)
        for sigma_rel in self.ema.sigma_rels:
            rule = "ema.sigma_rels between 0 and 0.28 with at most three decimals"
            _require(0 < sigma_rel < 0.28 and round(sigma_rel, 3) == sigma_rel, rule, sigma_rel)
        output = self.output
        _require(output.log_steps >= 1, "output.log_steps >= 1", output.log_steps)
        _require(output.keep_states >= 1, "output.keep_states >= 1", output.keep_states)
        _require(output.state_minutes >= 0, "output.state_minutes >= 0", output.state_minutes)
        _require(output.preview_count >= 1, "output.preview_count >= 1", output.preview_count)
        for name in ("snapshot_kimg", "preview_kimg"):
            value = getattr(output, name)
            _require(value is None or value > 0, f"output.{name} > 0", value)

    @property
    def num_steps(self) -> int:
        """Steps in the whole run; the last may go beyond ``duration_kimg`` by less than a batch."""
        return -(-round(self.duration_kimg * 1000) // self.batch_size)


def _require(holds: bool, rule: str, value: object) -> None:
    if not holds:
        raise ConfigError(f"a training run needs {rule}, got {value}")
