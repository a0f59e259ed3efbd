"""EDM2's post-hoc averages: exponents, betas, official coefficients, rebuilt weights."""

from typing import Any

import numpy as np
import torch
from golden_cases import Run
from torch import Tensor

from genlab.training.loop.ema import PowerAverage, gamma_of, sigma_rel_of
from genlab.training.posthoc import EDM2, Profile, coefficients, distance, rebuild


def exponent(run: Run) -> None:
    """Widths to exponents and back."""
    std, exp = run.input("std").tolist(), run.input("exp").tolist()
    run.expect_all({"exp": _vector(map(gamma_of, std)), "std": _vector(map(sigma_rel_of, exp))})


def beta(run: Run) -> None:
    """What an average keeps of itself in a step."""
    widths, ends, lengths = (run.input(name).tolist() for name in ("std", "t_next", "t_delta"))
    kept = [
        PowerAverage({}, width).keep(round(end - length), round(length))
        for width, end, length in zip(widths, ends, lengths, strict=True)
    ]
    run.expect_all({"beta": _vector(kept)})


def phema_coefficients(run: Run) -> None:
    """Coefficients by the official rule, the inner products under them, and what they are worth."""
    stored, wanted = _profiles(run, "in"), _profiles(run, "out")
    solved = [coefficients(stored, each, EDM2) for each in wanted]
    run.expect_all(
        {
            "coefficients": torch.tensor(np.array(solved)).T,
            "gram": torch.tensor([[a.dot(b) for b in stored] for a in stored]).double(),
            "right": torch.tensor([[a.dot(b) for b in wanted] for a in stored]).double(),
            "residual": _vector(map(distance, [stored] * len(wanted), solved, wanted)),
        }
    )


def phema_rebuild(run: Run) -> None:
    """Weights made of stored ones by the rule that `rebuild` has by default."""
    times, widths = run.input("in_ofs").tolist(), run.input("in_std").tolist()
    names = [name for name in run.spec["inputs"] if name.startswith("stored[")]
    stacked = {name.removeprefix("stored"): run.input(name) for name in names}
    snapshots = [{name: rows[i] for name, rows in stacked.items()} for i in range(len(times))]
    made = [
        rebuild(list(zip(widths, times, strict=True)), snapshots, width, end)[0]
        for width, end in zip(
            run.input("out_std").tolist(), run.input("out_ofs").tolist(), strict=True
        )
    ]
    results = {}
    for name in stacked:
        rows = torch.stack([weights[name] for weights in made])
        results[f"float32{name}"], results[f"float16{name}"] = rows, rows.half().float()
    run.expect_all(results)


def _profiles(run: Run, which: str) -> list[Profile]:
    times, widths = run.input(f"{which}_ofs").tolist(), run.input(f"{which}_std").tolist()
    return [Profile(gamma_of(width), t) for width, t in zip(widths, times, strict=True)]


def _vector(numbers: Any) -> Tensor:
    return torch.tensor(list(numbers), dtype=torch.float64)


CHECKS = {
    "edm2_phema_exponent": exponent,
    "edm2_phema_beta": beta,
    "edm2_phema_coefficients": phema_coefficients,
    "edm2_phema_rebuild": phema_rebuild,
}
