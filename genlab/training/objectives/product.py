"""A trained network as a folder: config.json, safetensors, model card."""

import tempfile
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import nn

from genlab.errors import OutputError
from genlab.files import write_bytes, write_text


class TrainedNetwork:
    """What comes out of a run that trains no generator.

    Args:
        network: a diffusers ``ModelMixin``.
        card: text of the model card (README.md).
    """

    def __init__(self, network: nn.Module, card: str | None = None) -> None:
        self.network, self.card = network, card

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> "TrainedNetwork":
        """Move the network, or change the type of its weights."""
        nn.Module.to(self.network, device=device, dtype=dtype)  # its own warns without a cause
        return self

    def save_pretrained(self, folder: Path) -> None:
        """Write the folder; ``from_pretrained`` of the network's class reads it.

        Raises:
            OutputError: the folder is not writable or the disk is full.
        """
        try:
            with tempfile.TemporaryDirectory() as name:
                self.network.save_pretrained(name)  # type: ignore[operator]  # a ModelMixin's method
                for path in sorted(Path(name).iterdir(), reverse=True):  # config.json last
                    content = path.read_bytes()
                    write_bytes(folder / path.name, content)
        except (OSError, SafetensorError) as error:
            if isinstance(error, OutputError):
                raise
            reason = getattr(error, "strerror", None) or error
            raise OutputError(f"cannot write the network to {folder}: {reason}") from error
        if self.card is not None:
            write_text(folder / "README.md", self.card)
