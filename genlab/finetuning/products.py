"""A fine-tuned network becomes a generator: what it keeps of its base, and what is its own."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from torch import nn

from genlab.generators.base import Generator

G = TypeVar("G", bound=Generator)


def product_of(
    start: G,
    network: nn.Module,
    *,
    class_names: Sequence[str] | None = None,
    has_null_class: bool | None = None,
    sampler: Mapping[str, Any] | None = None,
    card: str | None = None,
) -> G:
    """The base around another network: its preconditioning, autoencoder and sampler.

    Args:
        start: the base with the classes and the resolution of the product.
        network: prepared by a method, or merged.
        class_names: one for each class; None keeps those of ``start``.
        has_null_class: whether guidance by the null class is possible, where the family has one;
            None keeps what ``start`` says.
        sampler: what is laid over the base's own.
        card: text of the model card.

    Raises:
        ConfigError: the sampler is wrong.
        LabelError: there are not as many names as classes.
    """
    metadata: dict[str, Any] = {**start.metadata(), **start.parts()}
    if class_names is not None:
        metadata["class_names"] = list(class_names)
    if has_null_class is not None and "has_null_class" in metadata:
        metadata["has_null_class"] = has_null_class
    if sampler:
        own = ("the base's own sampler", start.sampler.config)
        layers = [*start.defaults(), own, ("sampler", sampler)]
        merged = start.sampler_class.from_layers(layers)
        metadata["sampler"] = merged.with_scales_of(start.sampler)
    return type(start).from_metadata(network, metadata, card)
