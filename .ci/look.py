"""Look at what the README's commands wrote: every run of ``genlab sample`` below a folder."""

import json
import sys
from pathlib import Path
from zipfile import ZipFile

import numpy as np
from PIL import Image


def main(folder: str) -> None:
    """Stop with a sentence at the first run whose files are not what its manifest says."""
    manifests = sorted(Path(folder).rglob("manifest.json"))
    if not manifests:
        sys.exit(f"no manifest below {folder}: the README's commands wrote no pictures")
    for manifest in manifests:
        facts = json.loads(manifest.read_text(encoding="utf-8"))
        images = _images(manifest.parent / facts["images"]["path"])
        _check(manifest, facts["images"], images)
        grid = Image.open(manifest.parent / "grid.png").size
        where = manifest.parent.relative_to(folder)
        print(
            f"{where}: {len(images)} images of {images.shape[1:]}, grid {grid}, {facts['nfe']} NFE"
        )


def _images(path: Path) -> np.ndarray:
    """All images of a run, (N, H, W, C), uint8."""
    if path.suffix == ".npz":
        with np.load(path) as stored:
            return stored["arr_0"]
    if path.suffix == ".zip":
        with ZipFile(path) as archive:
            names = [name for name in archive.namelist() if name.endswith(".png")]
            return np.stack([_pixels(archive.open(name)) for name in names])
    return np.stack([_pixels(png) for png in sorted(path.rglob("*.png"))])


def _pixels(file: object) -> np.ndarray:
    pixels = np.asarray(Image.open(file))
    return pixels if pixels.ndim == 3 else pixels[..., None]


def _check(manifest: Path, expected: dict, images: np.ndarray) -> None:
    channels, height, width = expected["shape"]
    if images.shape != (expected["count"], height, width, channels):
        sys.exit(f"{manifest} promises {expected}, found {images.shape}")
    contrast = images.reshape(len(images), -1).std(axis=1)
    if contrast.min() < 5 or contrast.max() > 125:
        sys.exit(f"{manifest}: an image is flat or noise (contrast {contrast.min()}...)")
    # Neighbouring pixels of a picture are alike; those of noise are not.
    steps = np.abs(np.diff(images.astype(float), axis=2)).mean(axis=(1, 2, 3))
    if np.median(steps / contrast) > 0.8:
        sys.exit(f"{manifest}: the images look like noise ({np.median(steps / contrast):.2f})")
    if len(np.unique(images, axis=0)) < len(images):
        sys.exit(f"{manifest}: two images are equal")


if __name__ == "__main__":
    main(sys.argv[1])
