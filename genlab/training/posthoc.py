"""Any power-function average out of a few stored ones, after training (EDM2's post-hoc EMA).

A power-function average of training time t weighs the weights at time tau with the density

    p(tau) = (gamma + 1) tau^gamma / t^(gamma + 1),   0 <= tau <= t.

A sum of stored averages has the weighted sum of their densities, so the sum that comes nearest to
the wanted density (in the least-squares sense) comes nearest to the wanted average. The inner
product of two densities has a closed form:

    <p_i, p_j> = (gamma_i + 1) (gamma_j + 1) / (gamma_i + gamma_j + 1) * (t_i / t_j)^gamma_j / t_j,
    t_i <= t_j

Since our averages take whole steps, each with exactly the integral of the density over that step,
the formula holds for them without approximation.

The coefficients must sum to 1, so that weights that never change come out as they are, whatever is
stored. There are two rules for that, see `RULES`: the nearest sum among those with coefficients of
sum 1, which is never farther from what is wanted; and EDM2's, which takes the nearest of all and
divides by the sum of its coefficients. They differ most with few stored averages (0.16 in a
coefficient with eight) and agree where the wanted average lies close to a sum of stored ones.

Source: Karras et al. 2023 (EDM2), arXiv:2312.02696, section 3.2 and Appendix C; NVlabs/edm2 for the
division, which the paper does not mention.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float64
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from genlab.errors import CheckpointError, ConfigError, TrainingError, nearest
from genlab.training.loop.ema import gamma_of
from genlab.training.loop.snapshots import Snapshot

Vector = Float64[np.ndarray, " n"]

CONSTRAINED, EDM2 = "constrained", "edm2"
RULES = (CONSTRAINED, EDM2)
"""``constrained``: least squares among coefficients that sum to 1, the default for runs of GenLab;
``edm2``: least squares, then division by the sum, as NVIDIA's tool rebuilds its snapshots."""


@dataclass(frozen=True)
class Profile:
    """The density of a power-function average.

    Attributes:
        gamma: its exponent, > 0.
        t: the training time it ends at, > 0; any unit, the same for all.
    """

    gamma: float
    t: float

    def dot(self, other: "Profile") -> float:
        """The inner product of two densities."""
        first, last = sorted((self, other), key=lambda p: p.t)
        scale = (first.gamma + 1) * (last.gamma + 1) / (first.gamma + last.gamma + 1)
        return float(scale * (first.t / last.t) ** last.gamma / last.t)


def check_rule(rule: str) -> None:
    """Refuse an unknown rule.

    Raises:
        ConfigError: names the nearest one.
    """
    if rule not in RULES:
        raise ConfigError(f"there is no post-hoc rule {rule!r}; {nearest(rule, RULES)}")


def coefficients(stored: Sequence[Profile], requested: Profile, rule: str = CONSTRAINED) -> Vector:
    """The coefficients of stored averages whose weighted sum is nearest to the requested average.

    Args:
        stored: profiles of the stored averages.
        requested: the profile to come near to.
        rule: one of `RULES`.

    Returns:
        One number for each stored average; they sum to 1.

    Raises:
        ConfigError: there is no such rule.
    """
    check_rule(rule)
    # In units of the wanted time all numbers are near 1, and each density is scaled to unit length:
    # profiles of early and late times differ by orders of magnitude, which would cost digits.
    unit = [Profile(p.gamma, p.t / requested.t) for p in stored]
    target = Profile(requested.gamma, 1.0)
    lengths = np.array([np.sqrt(p.dot(p)) for p in unit])
    gram = np.array([[a.dot(b) for b in unit] for a in unit]) / np.outer(lengths, lengths)
    right = np.array([p.dot(target) for p in unit]) / lengths
    if rule == EDM2:
        solution = np.linalg.lstsq(gram, right, rcond=1e-12)[0] / lengths
    else:
        solution = _constrained(gram, right, 1 / lengths) / lengths
    return solution / solution.sum()


def _constrained(gram: Float64[np.ndarray, "n n"], right: Vector, weights: Vector) -> Vector:
    """Least squares where ``weights @ solution`` is 1: a stationary point of the Lagrangian."""
    count = len(right)
    system = np.zeros((count + 1, count + 1))
    system[:count, :count] = gram
    system[:count, count] = system[count, :count] = weights
    return np.linalg.lstsq(system, np.append(right, 1.0), rcond=1e-12)[0][:count]


def distance(stored: Sequence[Profile], weights: Vector, requested: Profile) -> float:
    """The distance of a reconstructed density from the requested one, relative to its norm."""
    profiles = [*stored, requested]
    signed = np.append(weights, -1.0)
    gram = np.array([[a.dot(b) for b in profiles] for a in profiles])
    return float(np.sqrt(max(signed @ gram @ signed, 0.0) / requested.dot(requested)))


def reconstruct(
    snapshots: Sequence[Snapshot],
    sigma_rel: float,
    images: int | None = None,
    rule: str = CONSTRAINED,
) -> tuple[dict[str, Tensor], float]:
    """Make a power-function average from those that a run has stored.

    Args:
        snapshots: of one run; those of other kinds are left out, and so are those later than
            ``images``.
        sigma_rel: width wanted, between 0 and 0.28.
        images: training time at which it is wanted; None is the latest.
        rule: one of `RULES`.

    Returns:
        Name -> averaged parameter in float32, and how far the profile is from the wanted one (see
        `distance`).

    Raises:
        TrainingError: nothing is stored, or the width is out of range.
        CheckpointError: a snapshot is damaged.
        ConfigError: there is no such rule.
    """
    usable = [
        s for s in snapshots if s.sigma_rel is not None and (images is None or s.images <= images)
    ]
    if not usable:
        _check_width(sigma_rel)
        raise TrainingError(
            "no power-function averages are stored in this run; train with "
            "ema.sigma_rels=[0.05,0.1], or take the "
            "average by half-life (--ema halflife)"
        )
    stored = [(s.sigma_rel or 0.0, s.images) for s in usable]
    return rebuild(stored, map(read_snapshot, usable), sigma_rel, images, rule)


def rebuild(
    stored: Sequence[tuple[float, float]],
    weights: Iterable[Mapping[str, Tensor]],
    sigma_rel: float,
    images: float | None = None,
    rule: str = EDM2,
) -> tuple[dict[str, Tensor], float]:
    """Make a power-function average from stored ones, wherever they come from.

    Args:
        stored: (width, training time in images) of each of them.
        weights: name -> parameter of each, in the same order; one is in memory at a time.
        sigma_rel: width wanted, between 0 and 0.28.
        images: training time at which it is wanted; None is the latest.
        rule: one of `RULES`; by default the one by which NVIDIA rebuilds its own.

    Returns:
        See `reconstruct`.

    Raises:
        TrainingError: the width is out of range.
        ConfigError: there is no such rule.
    """
    _check_width(sigma_rel)
    profiles = [Profile(gamma_of(width), t) for width, t in stored]
    requested = Profile(gamma_of(sigma_rel), images or max(p.t for p in profiles))
    shares = coefficients(profiles, requested, rule)
    return _weighted_sum(weights, shares), distance(profiles, shares, requested)


def _check_width(sigma_rel: float) -> None:
    if not 0 < sigma_rel < 0.28:
        raise TrainingError(f"the width of an average must lie between 0 and 0.28, got {sigma_rel}")


def _weighted_sum(weights: Iterable[Mapping[str, Tensor]], shares: Vector) -> dict[str, Tensor]:
    total: dict[str, Tensor] = {}
    for stored, share in zip(weights, shares, strict=True):
        for name, value in stored.items():
            # float64: coefficients of opposite sign cancel.
            part = value.double() * float(share)
            total[name] = total[name] + part if name in total else part
    return {name: value.float() for name, value in total.items()}


def read_snapshot(snapshot: Snapshot) -> Mapping[str, Tensor]:
    """The tensors of a snapshot, as stored.

    Raises:
        CheckpointError: the file is damaged.
    """
    try:
        tensors: dict[str, torch.Tensor] = load_file(snapshot.path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{snapshot.path} cannot be read ({error}); remove it to do without this snapshot"
        ) from error
    return tensors
