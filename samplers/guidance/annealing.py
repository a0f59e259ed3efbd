"""The annealing of CADS: how much of the condition is left at a time."""


def cads_gamma(time: float, tau1: float, tau2: float) -> float:
    """1 for ``time <= tau1``, 0 for ``time >= tau2``, and a straight line between.

    Args:
        time: 1 = noise, 0 = data.
        tau1: where the condition begins to fade, <= tau2.
        tau2: where nothing of it is left.

    Source: Sadat et al. (CADS, arXiv:2310.17347), Section 3.
    """
    if time <= tau1:
        return 1.0
    if time >= tau2:
        return 0.0
    return (tau2 - time) / (tau2 - tau1)
