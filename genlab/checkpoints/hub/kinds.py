"""Whether a folder's texts are those of a model that something here reads."""

from pathlib import Path
from typing import Any

from genlab.checkpoints.hub.layout import Layout
from genlab.errors import CheckpointError, printable
from genlab.files import read_json_object
from genlab.saving.index import PIPELINE

NETWORKS = frozenset(
    {"AutoencoderKL", "AutoencoderTiny", "ClassifierCNN", "DiTTransformer2DModel", "UNet2DModel"}
)
"""Classes of a single network's folder that something here reads: what its config.json names."""


def check_kind(layout: Layout, folder: Path, name: str) -> dict[str, Any]:
    """Refuse another program's model; its weights need not be there.

    Args:
        layout: of the folder.
        folder: with the texts of the model.
        name: of the model, as the message begins.

    Returns:
        What its main file says.

    Raises:
        CheckpointError: nothing here reads it, or a text is damaged.
    """
    content = read_json_object(folder / layout.main, "fetch or save it again")
    class_name = content.get("_class_name")
    if layout.kind == "adapter" or (layout.kind == "model" and class_name == PIPELINE):
        return content
    if layout.kind == "network" and class_name in NETWORKS:
        return content
    if layout.kind == "model":
        from genlab.checkpoints.conversion import is_readable_folder

        if is_readable_folder(folder):
            return content
    contents = (
        f"a {printable(class_name, 60)}"
        if isinstance(class_name, str)
        else "another program's model"
    )
    raise CheckpointError(
        f"{name} holds {contents}, which GenLab does not read; it reads folders of its own, "
        "adapters, and diffusers' pipelines of UNet2DModel and DiTTransformer2DModel"
    )
