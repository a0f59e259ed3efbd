"""Image files in a folder or a zip as a source."""

import numpy as np
from jaxtyping import UInt8

from genlab.data.sources.base import ImageSource
from genlab.data.sources.containers import Container, ZipContainer
from genlab.data.sources.decode import Picture, decode
from genlab.data.sources.layout import Layout, layout_of
from genlab.errors import DataError, escaped


class MemberSource(ImageSource):
    """One file for each image.

    Args:
        container: where the files lie.
        split: ``train`` or ``test``, where the top folders are parts.
        layout: what the names mean; None finds out.

    Raises:
        DataError: no images, or files laid out so that the labels would be wrong.
    """

    def __init__(
        self, container: Container, split: str = "train", layout: Layout | None = None
    ) -> None:
        layout = layout or layout_of(container, split)
        for finding in layout.findings:
            if finding.level == "error":
                raise DataError(f"{container.path}: {finding.message}")
        self.container = container
        self.path = container.path
        self.kind = "zip of images" if isinstance(container, ZipContainer) else "folder of images"
        self.labels, self.class_names = layout.labels, layout.class_names
        self.findings, self.split = layout.findings, layout.split
        self._names = layout.images

    def __len__(self) -> int:
        return len(self._names)

    def name(self, index: int) -> str:
        """The image's path inside the folder or zip."""
        return escaped(self._names[index])

    def picture(self, index: int) -> Picture:
        """One image with what is to be known about its file."""
        name = self._names[index]
        return decode(self.container.read(name), f"{self.path}: {escaped(name)}")

    def read(self, index: int) -> UInt8[np.ndarray, "C H W"]:
        """One image, upright."""
        return self.picture(index).pixels
