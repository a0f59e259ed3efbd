"""The layout of any network that can be fine-tuned: GenLab's tell theirs, others are described."""

from collections.abc import Callable

from torch import nn

from genlab.errors import ConfigError
from genlab.networks.base import Network
from genlab.networks.layout import Layout
from genlab.registry import Registry, class_path

LAYOUTS: Registry[Callable[[nn.Module], Layout]] = Registry(
    "genlab.layouts",
    {
        "diffusers.models.transformers.dit_transformer_2d.DiTTransformer2DModel": (
            "genlab.finetuning.diffusers_layouts:dit_layout"
        ),
    },
    kind="layout",
)
"""Module and name of a network's class -> what tells the layout of such a network, or of one of a
class derived from it."""


def layout_of(network: nn.Module) -> Layout:
    """What a network is made of.

    Raises:
        ConfigError: there is no layout for networks of this class.
    """
    if isinstance(network, Network):
        return network.layout()
    for cls in type(network).__mro__:
        if class_path(cls) in LAYOUTS:
            return LAYOUTS[class_path(cls)](network)
    path = class_path(type(network))
    raise ConfigError(
        f"{path} does not tell its parts, so no method can fine-tune it; describe them with "
        f"@LAYOUTS.register({path!r}) of {__name__}"
    )
