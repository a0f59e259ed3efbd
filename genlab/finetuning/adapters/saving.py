"""Write an adapter's folder."""

from pathlib import Path

from torch import nn

from genlab.files import atomic_path
from genlab.finetuning.adapters.facts import AdapterMetadata, write_metadata
from genlab.finetuning.adapters.folders import TENSORS
from genlab.finetuning.methods.base import Method
from genlab.training.loop.state import save_tensors, writing

USAGE = (
    "This folder is an adapter: it holds what was trained, and names the model that it belongs to. "
    "To draw samples:\n\n```\ngenlab sample PATH_TO_THIS_FOLDER --seeds 0-63 -o samples/\n```\n\n"
    "Where that model lies elsewhere on your machine, name it: `genlab sample MODEL --adapter "
    "PATH_TO_THIS_FOLDER`."
)
"""Of a model card, in Markdown."""


def write_adapter(
    folder: Path, method: Method, network: nn.Module, metadata: AdapterMetadata
) -> None:
    """Write an adapter, each file whole or not at all.

    Args:
        folder: gets ``adapter_config.json`` and ``adapter_model.safetensors``; where another
            library says what the first holds, ``genlab.json`` holds the metadata.
        method: that has prepared the network.
        network: whose delta is stored.
        metadata: about base and training.

    Raises:
        OutputError: the folder is not writable or the disk is full.
    """
    theirs = method.adapter_config(network, str(metadata.base))
    with writing(folder / TENSORS), atomic_path(folder / TENSORS) as temporary:
        save_tensors(temporary, method.saved(network))
    write_metadata(folder, metadata, theirs)
