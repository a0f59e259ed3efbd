"""The protocol card: all that a score depends on, and the names of frozen protocols."""

import math
import platform
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import diffusers
import numpy as np
import torch

import genlab
from genlab import config as configs
from genlab.data.pixels import PIXEL_RULE
from genlab.errors import ConfigError, UnknownNameError, nearest
from genlab.eval.config import EvalConfig
from genlab.eval.extractors.base import FeatureExtractor
from genlab.eval.leaderboard.records import Score
from genlab.eval.metrics.base import FeatureMetric, LikelihoodMetric, Metric
from genlab.eval.metrics.registry import METRICS, official_names

FROZEN = ("extractor", "metrics", "reference_split", "count", "labels", "repeats")
"""What a protocol's name stands for; changing any of these takes the name off the card."""

COMBINED = {"prdc": ("pr", "dc")}
"""Names that stand for several metrics at once."""

T_975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
"""Student's t for 95 % intervals with 1 ... 9 degrees of freedom; beyond, 1.96 is near enough."""


def build_metrics(entries: Sequence[Any]) -> dict[str, FeatureMetric | LikelihoodMetric]:
    """The metrics that a configuration names, by plain name.

    Args:
        entries: names (official ones too: ``fid`` is ``fd``, ``prdc`` two of them) or mappings with
            a ``name`` and options.

    Raises:
        UnknownNameError: there is no such metric.
        ConfigError: an option is wrong, a metric stands twice, or its class is not as it should be.
    """
    official = official_names(needed={_name_of(entry) for entry in entries})
    plain = {name: (score.metric,) for name, score in official.items()} | COMBINED
    metrics: dict[str, FeatureMetric | LikelihoodMetric] = {}
    for entry in entries:
        options = dict(entry) if isinstance(entry, Mapping) else {}
        options.pop("name", None)
        entry_name = _name_of(entry)
        for name in plain.get(entry_name, (entry_name,)):
            if name not in METRICS:
                names = [*METRICS, *plain]
                raise UnknownNameError(f"there is no metric {name!r}; {nearest(name, names)}")
            if name in metrics:
                raise ConfigError(f"the metric {name!r} stands twice; name it once")
            metrics[name] = _checked(name, METRICS.build(name, **options))
    return metrics


def _name_of(entry: Any) -> str:
    return str(entry.get("name", "") if isinstance(entry, Mapping) else entry)


def _checked(name: str, metric: object) -> FeatureMetric | LikelihoodMetric:
    """The metric, if it is of one of the two kinds and says what it needs."""
    if isinstance(metric, LikelihoodMetric):
        return metric
    if not isinstance(metric, FeatureMetric):
        raise ConfigError(
            f"the metric {name!r} is of neither kind; derive its class from FeatureMetric or "
            "LikelihoodMetric of genlab.eval.metrics.base"
        )
    if not getattr(metric, "needs", ()):
        raise ConfigError(
            f"the metric {name!r} declares no needs; its class must name what it reads of the "
            'samples: needs = (Need("rows", "features"),)'
        )
    return metric


def check_names(entries: Sequence[Any], extractor: FeatureExtractor) -> None:
    """Refuse an official name (``fid``) for what another network than Inception would see.

    Raises:
        ConfigError: says how the score is called instead.
    """
    official = official_names()
    for entry in entries:
        name = _name_of(entry)
        if name in official and not extractor.official:
            metric, info = official[name]
            raise ConfigError(
                f"{name} means the official Inception network, and this extractor is "
                f"{extractor.name}; ask for {metric}, which is then called "
                f"{info.full_name(extractor.name, official=False)}"
            )


def frozen_name(config: EvalConfig) -> str | None:
    """The frozen protocol that a configuration is, whatever it samples and compares with.

    >>> frozen_name(EvalConfig()) is None
    True
    """
    ours = _frozen(config)
    for name in configs.preset_names("eval"):
        if ours == _frozen(configs.load(EvalConfig, name, "eval")):
            return name
    return None


def _frozen(config: EvalConfig) -> dict[str, Any]:
    plain = configs.to_plain(config)
    entries = [dict(e) if isinstance(e, Mapping) else {"name": e} for e in plain["metrics"]]
    return {**{key: plain[key] for key in FROZEN}, "metrics": sorted(entries, key=str)}


def protocol_metadata(
    config: EvalConfig,
    extractor: FeatureExtractor,
    metrics: Mapping[str, Metric],
    reference: Mapping[str, Any] | None,
    count: int,
    labels: str,
) -> dict[str, Any]:
    """All that must be equal for two scores to be ranked together."""
    return {
        "name": frozen_name(config),
        "extractor": extractor.identity(),
        "pixel_rule": PIXEL_RULE,
        "reference": None if reference is None else dict(reference),
        "count": count,
        "labels": labels,
        "metrics": {name: metric.settings() for name, metric in metrics.items()},
    }


def environment_metadata(device: torch.device, processes: int) -> dict[str, Any]:
    """What a score should not depend on, but might."""
    cuda = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if cuda else device.type,
        "processes": processes,
        "tf32": _tf32() if cuda else "none",
        "versions": {
            "genlab": genlab.__version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "diffusers": diffusers.__version__,
            "numpy": np.__version__,
        },
    }


def _tf32() -> str:
    """Where a GPU may round float32 to TF32 while it samples; extractors never do."""
    try:
        flags = {
            "products": torch.backends.cuda.matmul.allow_tf32,
            "convolutions": torch.backends.cudnn.allow_tf32,
        }
    except RuntimeError:  # set through torch's newer switches, which these refuse to tell
        return "not known"
    return " and ".join(name for name, on in flags.items() if on) or "none"


def summarise(values: Sequence[float]) -> Score:
    """Mean and 95 % interval of independent repeats; one run has no interval.

    >>> summarise([2.0, 2.2]).value
    2.1
    """
    mean = statistics.fmean(values)
    if len(values) < 2:
        return Score(value=mean, values=tuple(values))
    freedom = len(values) - 1
    t = T_975[freedom - 1] if freedom <= len(T_975) else 1.96
    half = t * statistics.stdev(values) / math.sqrt(len(values))
    return Score(value=mean, low=mean - half, high=mean + half, values=tuple(values))
