"""The card of a model on the hub: its own README.md, with what only a hub needs laid over it.

Cards are written where models are made (`genlab.training.card`, `genlab.checkpoints.card`); this
edits one. Whatever its author wrote stays.
"""

from collections.abc import Sequence
from typing import Any

from huggingface_hub import EvalResult, ModelCard

from genlab.errors import ConfigError, reason

PLACES = ("PATH_TO_THIS_FOLDER", "path/to/this/folder")
"""What our cards call the folder that they lie in: on a hub it has a name."""

LIBRARY = "genlab"


def hub_card(
    text: str | None,
    repository: str,
    *,
    task: str | None,
    base: str | None = None,
    results: Sequence[EvalResult] = (),
) -> str:
    """The text of README.md as it goes up.

    Args:
        text: of the folder's own card; None where it has none.
        repository: ``owner/name``.
        task: the hub's word for what the model does, for a card that says none; None: no word.
        base: of an adapter, where it is a repository of the hub.
        results: of evaluations; where there are none, those that the card has stay.

    Raises:
        ConfigError: the card's header cannot be read.
    """
    name = repository.partition("/")[2]
    try:
        card = ModelCard(_with_header(_plain_card(name) if text is None else text))
        data: Any = card.data
        data.library_name = data.library_name or LIBRARY
        data.pipeline_tag = data.pipeline_tag or task
        data.tags = list(dict.fromkeys([*(data.tags or []), LIBRARY]))
        if isinstance(data.license, str):
            data.license = data.license.lower()  # identifiers of hubs are in small letters
        if base is not None:
            data.base_model = base
        if results:
            data.model_name, data.eval_results = name, list(results)
        card.text = _with_name(card.text, repository)
        return str(card)
    except Exception as error:  # of a YAML reader, or of checks of the hub's library
        raise ConfigError(
            f"the header of the model card README.md cannot be read ({reason(error)}); mend what "
            "stands between its lines of dashes"
        ) from error


def _with_header(text: str) -> str:
    """The same with an empty header where it has none, about which the hub's library warns."""
    return text if text.lstrip().startswith("---") else f"---\n\n---\n{text}"


def _plain_card(name: str) -> str:
    return f"# {name}\n\nA model of GenLab: `genlab doctor {PLACES[0]}` tells what it is.\n"


def _with_name(text: str, repository: str) -> str:
    for place in PLACES:
        text = text.replace(place, repository)
    return text
