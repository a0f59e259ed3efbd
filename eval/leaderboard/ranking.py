"""Which score is better: ranks that respect intervals, and the Pareto front."""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from typing import NamedTuple

from genlab.eval.leaderboard.records import Score

ROUNDING = 1e-6
"""Relative; two values of one measurement are as near as that."""


def plain_name(score: str) -> tuple[str, str]:
    """A score's plain name and, for one that is not official, the extractor it was made with.

    >>> plain_name("fd[cnn-fmnist]")
    ('fd', 'cnn-fmnist')
    """
    plain, bracket, extractor = score.partition("[")
    return plain, extractor.removesuffix("]") if bracket else ""


class Rank(NamedTuple):
    """A place.

    Attributes:
        place: 1 + the number of scores that are clearly better.
        tied: whether the interval overlaps that of another score.
    """

    place: int
    tied: bool

    def __str__(self) -> str:
        return f"={self.place}" if self.tied else str(self.place)


def rank(scores: Sequence[Score], lower: bool) -> list[Rank]:
    """Rank scores; a score is better than another only if their 95 % intervals do not overlap.

    A single run has no interval and counts as a point: its place may be chance. Values that differ
    by no more than `ROUNDING` tie, since a resumed run adds the same numbers in another order.
    Overlap does not carry over (A may tie with B and B with C, and A still beat C), so places are
    counted from the scores that are clearly better rather than by putting ties into classes.

    >>> [str(r) for r in rank([Score(value=2.0, low=1.0, high=3.0), Score(value=2.5)], lower=True)]
    ['=1', '=1']
    """
    sign = 1 if lower else -1
    ends = [_widened(*sorted((sign * _low(score), sign * _high(score)))) for score in scores]
    lows, highs = sorted(low for low, _ in ends), sorted(high for _, high in ends)
    ranks = []
    for low, high in ends:
        better = bisect_left(highs, low)
        worse = len(lows) - bisect_right(lows, high)
        ranks.append(Rank(better + 1, better + worse < len(scores) - 1))
    return ranks


def _widened(low: float, high: float) -> tuple[float, float]:
    return low - abs(low) * ROUNDING / 2, high + abs(high) * ROUNDING / 2


def _low(score: Score) -> float:
    return score.value if score.low is None else score.low


def _high(score: Score) -> float:
    return score.value if score.high is None else score.high


def pareto_front(points: Sequence[tuple[float, float]], lower: bool) -> list[int]:
    """The points that no other beats in cost without losing in quality.

    Args:
        points: (cost, score); less cost is better.
        lower: whether a lower score is better.

    Returns:
        Their indices, from cheap to dear. Of equal points all are on the front.

    >>> pareto_front([(9, 4.0), (18, 2.0), (35, 2.5)], lower=True)
    [0, 1]
    """
    sign = 1 if lower else -1
    order = sorted(range(len(points)), key=lambda i: (points[i][0], sign * points[i][1]))
    front: list[int] = []
    for index in order:
        score = sign * points[index][1]
        if not front or score < sign * points[front[-1]][1] or points[index] == points[front[-1]]:
            front.append(index)
    return front
