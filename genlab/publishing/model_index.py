"""Evaluation records as the ``model-index`` of a model card, which hubs show and search.

A number on a hub's page stands alone, so what it depends on goes along: the name of each metric
says its protocol or extractor and the number of images, and its arguments point to the rest.
"""

from collections.abc import Iterable
from typing import Any

from huggingface_hub import EvalResult

from genlab.eval.leaderboard.records import Record

TASK = "unconditional-image-generation"
"""The hub's name for image generation without text; it has none for generation by class."""


def eval_results(records: Iterable[Record]) -> list[EvalResult]:
    """One result for each score of each record.

    Args:
        records: of one model.
    """
    return [
        EvalResult(
            task_type=TASK,
            task_name="Image generation",
            dataset_type=record.dataset,
            dataset_name=record.dataset,
            metric_type=name.partition("[")[0],
            metric_name=f"{name} ({_setting(record)})",
            metric_value=score.value,
            metric_args=_arguments(record, score.low, score.high),
            source_name=record.source or None,
        )
        for record in records
        for name, score in record.scores.items()
    ]


def _setting(record: Record) -> str:
    """What a number is good for, in a few words: ``offline-2k, 2,000 images``."""
    count = record.protocol.get("count")
    words = [
        str(record.protocol.get("name") or "no protocol by name"),
        f"{count:,} images" if isinstance(count, int) else "",
        record.created[:10],
    ]
    return ", ".join(filter(None, words))


def _arguments(record: Record, low: float | None, high: float | None) -> dict[str, Any]:
    protocol = record.protocol
    metadata = {
        "protocol": protocol.get("name"),
        "extractor": _name(protocol.get("extractor")),
        "reference": _name(protocol.get("reference")),
        "count": protocol.get("count"),
        "nfe": record.cost.get("nfe"),
        "low": low,
        "high": high,
    }
    return {key: value for key, value in metadata.items() if value is not None}


def _name(part: Any) -> Any:
    return part.get("name") if isinstance(part, dict) else part
