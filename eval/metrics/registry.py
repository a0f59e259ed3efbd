"""The metrics by name, and the scores that they declare; the leaderboard needs no more of them."""

from collections.abc import Collection
from typing import TYPE_CHECKING, NamedTuple

from genlab.errors import ConfigError, GenLabError
from genlab.eval.metrics.scores import ScoreInfo, scores_in_source
from genlab.registry import Registry, leave_out

if TYPE_CHECKING:  # it imports torch
    from genlab.eval.metrics.base import Metric

METRICS: "Registry[type[Metric]]" = Registry(
    "genlab.metrics",
    {
        "fd": "genlab.eval.metrics.frechet:FrechetDistance",
        "fd-infinity": "genlab.eval.metrics.frechet:FrechetDistanceInfinity",
        "sfd": "genlab.eval.metrics.frechet:SpatialFrechetDistance",
        "kd": "genlab.eval.metrics.kernel:KernelDistance",
        "cs": "genlab.eval.metrics.classifier_score:ClassifierScore",
        "pr": "genlab.eval.metrics.manifold:PrecisionRecall",
        "dc": "genlab.eval.metrics.manifold:DensityCoverage",
        "consistency": "genlab.eval.metrics.classification:ClassConsistency",
        "cas": "genlab.eval.metrics.classification:ClassificationAccuracyScore",
        "vendi": "genlab.eval.metrics.diversity:Vendi",
        "similarity": "genlab.eval.metrics.diversity:MeanPairwiseSimilarity",
        "bpd": "genlab.eval.metrics.likelihood:BitsPerDimension",
        "nearest": "genlab.eval.metrics.memorisation:NearestTrainingImages",
    },
)
"""Plain names, in the order in which tables show the scores; TF-GAN calls the Inception Score with
other features classifier score, too."""


class DeclaredScore(NamedTuple):
    """A score and the metric that gives it, whose settings therefore count."""

    metric: str
    info: ScoreInfo


def declared_scores(needed: Collection[str] = ()) -> dict[str, DeclaredScore]:
    """All scores of all registered metrics by their names, in the order in which tables show them.

    A broken plug-in is left out with a warning, so that it does not stop what has no need of it.

    Args:
        needed: metrics that must not be broken.

    Returns:
        Plain and official names -> the declaration.

    Raises:
        ConfigError: a metric in ``needed`` cannot be imported, declares no scores, or declares one
            that another metric has declared.
    """
    declared: dict[str, DeclaredScore] = {}
    for metric in METRICS.in_order():
        try:
            declared = _with_scores_of(metric, declared)
        except GenLabError as error:
            if metric in needed:
                raise
            leave_out(error)
    return declared


def official_names(needed: Collection[str] = ()) -> dict[str, DeclaredScore]:
    """The official names that a metric can be asked for by: ``fid``, ``is``, ``kid``.

    Args:
        needed: see `declared_scores`.
    """
    return {
        name: score
        for name, score in declared_scores(needed).items()
        if name != score.info.name and not score.info.detail
    }


def _with_scores_of(metric: str, declared: dict[str, DeclaredScore]) -> dict[str, DeclaredScore]:
    declared = dict(declared)
    for info in _scores_of(metric):
        for name in info.names:
            if name in declared:
                raise ConfigError(
                    f"the score {name!r} is declared twice, by the metric "
                    f"{declared[name].metric!r} and by {metric!r}; give it another name"
                )
            declared[name] = DeclaredScore(metric, info)
    return declared


def _scores_of(metric: str) -> tuple[ScoreInfo, ...]:
    title, entry = METRICS.title(metric), METRICS.entry_point(metric)
    try:
        scores = None if entry is None else scores_in_source(entry.module, entry.attr)
        scores = getattr(METRICS[metric], "scores", None) if scores is None else scores
    except GenLabError:
        raise
    except Exception as error:  # the packages above a module may fail in any way, too
        raise ConfigError(
            f"{title} cannot be imported: {error}; mend its package or uninstall it"
        ) from error
    if not (isinstance(scores, tuple) and scores and all(isinstance(s, ScoreInfo) for s in scores)):
        raise ConfigError(
            f"{title} declares no scores; its class needs a tuple of them: scores = "
            f"(ScoreInfo({metric!r}, lower_is_better=True),)"
        )
    return scores
