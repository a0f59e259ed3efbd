"""An adapted model becomes a plain one, where its method allows that."""

import copy

from genlab.finetuning.adapters.adapter import Adapter
from genlab.finetuning.adapters.saving import USAGE
from genlab.finetuning.methods.base import METHODS, Method
from genlab.finetuning.objective import FinetuneObjective, describe_method
from genlab.generators.base import Generator
from genlab.saving.adapted import adaptation_of, mark


def merged(generator: Generator, card: str | None = None) -> Generator:
    """A plain model that draws what an adapted one draws, up to rounding.

    Args:
        generator: with an adapter, or without one: then it comes back as it is. It is not changed.
        card: text of the model card; None keeps it.

    Raises:
        ConfigError: what the method adds cannot become part of weights.
    """
    adaptation = adaptation_of(generator.network)
    if adaptation is None:
        return generator
    method: Method = METHODS.build_named(dict(adaptation.method))
    network = method.merge(copy.deepcopy(generator.network)).eval()
    mark(network, None)
    metadata = {**generator.metadata(), **generator.parts()}
    return type(generator).from_metadata(network, metadata, card or generator.card)


def merged_card(adapter: Adapter) -> str:
    """The model card of a merged model: that of the adapter, where GenLab wrote one.

    Args:
        adapter: that is merged.
    """
    card = adapter.card or ""
    if USAGE in card:
        return card.replace(USAGE, FinetuneObjective.usage)
    return f"""---
library_name: genlab
---
# {adapter.name}, merged

| | |
|---|---|
| Base | {adapter.metadata.base} |
| Method | {describe_method(adapter.method)} |
| Trained | {adapter.trained:,} numbers |

{FinetuneObjective.usage}
"""
