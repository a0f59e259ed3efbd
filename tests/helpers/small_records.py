"""Records of invented evaluations."""

from typing import Any

from genlab.eval.leaderboard.records import Record, Score

PICTURE = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNoAAAAggCBd81ytgAAAABJRU5ErkJggg=="
)
"""A PNG of one grey pixel."""

Value = float | tuple[float, float, float]
"""A score, or a score with the ends of its interval."""


def make_record(
    model: str,
    *,
    dataset: str = "fmnist",
    extractor: str = "cnn",
    count: int = 2000,
    name: str | None = "quick",
    nfe: float | None = None,
    seconds: float | None = None,
    metrics: dict[str, Any] | None = None,
    notes: str = "",
    picture: str = "",
    source: str = "",
    **values: Value,
) -> Record:
    """A record with these scores; only what is named differs from one to the next."""
    costs = {"nfe": nfe, "seconds_per_image": seconds}
    return Record(
        model=model,
        dataset=dataset,
        scores={f"{key}[{extractor}]": _score(value) for key, value in values.items()},
        protocol={
            "name": name,
            "extractor": {"name": extractor, "weights_sha256": "ab" * 32, "resize": "none"},
            "pixel_rule": "floor",
            "reference": {"name": f"{dataset}-train", "pixels_sha256": "cd" * 32, "count": 60000},
            "count": count,
            "labels": "balanced",
            "metrics": {"fd": {}, "pr": {"k": 3}} if metrics is None else metrics,
        },
        sampling={
            "sampler": {
                "guidance": [{"name": "cfg", "scale": 1.5}],
                "schedule": {"name": "karras", "num_steps": 18},
                "solver": {"name": "heun"},
            },
            "seeds": f"0-{count - 1}",
        },
        provenance={"family": "diffusion", "weights_sha256": "ef" * 32},
        environment={"device": "cpu"},
        cost={key: value for key, value in costs.items() if value is not None},
        picture=picture,
        created="2026-01-02T03:04:05+00:00",
        source=source,
        notes=notes,
    )


def _score(value: Value) -> Score:
    if isinstance(value, tuple):
        return Score(value=value[0], low=value[1], high=value[2])
    return Score(value=float(value))
