"""Which files of a repository are a model's: the same list going up and coming down.

It names what is wanted and nothing else is taken, so that no pickle, script or hidden file is ever
asked for, and none is ever sent.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from genlab.saving.index import INDEX

CONFIG = "config.json"
CARD = "README.md"
ADAPTER = "adapter_config.json"

_WEIGHTS = r"diffusion_pytorch_model(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?"
_PARTS = "network|autoencoder|unet|transformer|vae"
"""Our pipeline's folders, then those of diffusers' pipelines that `genlab.convert` reads."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The files of one kind of folder.

    Attributes:
        kind: ``model``, ``adapter`` or ``network``, in the words of messages.
        main: the file that makes a folder one of this kind.
        files: what the path of a file of the model looks like, relative to the folder.
    """

    kind: str
    main: str
    files: re.Pattern[str]

    def wants(self, path: str) -> bool:
        """Whether this is a file of the model, by its path with forward slashes."""
        return self.files.fullmatch(path) is not None


LAYOUTS = (
    Layout(
        kind="model",
        main=INDEX,
        files=re.compile(
            rf"{re.escape(INDEX)}|README\.md|scheduler/scheduler_config\.json|"
            rf"({_PARTS})/({CONFIG.replace('.', '[.]')}|{_WEIGHTS})"
        ),
    ),
    Layout(
        kind="adapter",
        main=ADAPTER,
        files=re.compile(
            r"adapter_config\.json|adapter_model\.safetensors|genlab\.json|README\.md"
        ),
    ),
    Layout(
        kind="network",
        main=CONFIG,
        files=re.compile(rf"config\.json|scheduler_config\.json|README\.md|{_WEIGHTS}"),
    ),
)
"""In the order in which they are looked for: a folder with two main files is of the first kind."""


def layout_of(paths: Iterable[str]) -> Layout | None:
    """The kind of folder that these files make; None for none of ours.

    >>> layout_of(["README.md", "adapter_config.json", "train.py"]).kind
    'adapter'
    """
    there = set(paths)
    return next((layout for layout in LAYOUTS if layout.main in there), None)
