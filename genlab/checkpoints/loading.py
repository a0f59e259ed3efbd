"""`genlab.load`: a name, a folder or an official file becomes a generator."""

from pathlib import Path

import torch

from genlab.checkpoints import beside
from genlab.checkpoints.bundled import INDEX, bundled_folder, bundled_names
from genlab.checkpoints.conversion import convert, is_readable_folder
from genlab.checkpoints.zoo import entries, pulled_folder
from genlab.errors import CheckpointError, GenLabError, UnknownNameError, nearest
from genlab.generators.base import Generator
from genlab.generators.discriminator import GanDiscriminator
from genlab.generators.families import read_generator
from genlab.generators.folder import read_index
from genlab.generators.noisy_classifier import NoisyClassifier


def load(
    name_or_path: Path | str,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Generator:
    """Load a generator.

    Args:
        name_or_path: a bundled model (``edm-fmnist``), a zoo model that ``genlab zoo pull`` has
            fetched, an adapter (its folder, or the name of one that ``genlab adapter add`` keeps),
            a folder that ``save_pretrained`` or diffusers wrote, or an official file. Names win
            over folders of the same name in the current folder; ``./name`` is always the folder.
        device: where to put it; None leaves it on the CPU.
        dtype: what the network computes in; None is float32.

    Raises:
        UnknownNameError: there is neither a model nor a file of this name.
        CheckpointError: the folder or file cannot be read.
    """
    generator = _find(str(name_or_path))
    return generator if device is None and dtype is None else generator.to(device, dtype)


def _find(name: str) -> Generator:
    if name in bundled_names():
        return _read(name, bundled_folder(name))
    pulled = pulled_folder(name) if name in entries() else None
    if pulled is not None:
        return _read(name, pulled)
    if (model := beside.read(name)) is not None:
        return model
    path = Path(name)
    if is_readable_folder(path):
        return _generator(path)
    if path.is_dir():
        if not (path / INDEX).is_file():
            raise CheckpointError(
                f"{path} is no model: it has no {INDEX}; give the folder that save_pretrained, "
                "genlab convert or genlab finetune wrote"
            )
        return _read(name, path)
    if path.is_file():
        return _generator(path)
    if name not in entries() and (path.suffix or path.parent != Path()):
        raise CheckpointError(f"there is no file or folder {path}; check the path")
    raise _not_here(name)


def _read(name: str, folder: Path) -> Generator:
    family = read_index(folder).get("family")
    if family == NoisyClassifier.family:
        raise CheckpointError(
            f"{name} is a classifier of noisy images, which draws nothing itself; sample a "
            f"diffusion model with sampler.guidance=[{{name: classifier, classifier: {name}}}]"
        )
    if family == GanDiscriminator.family:
        raise CheckpointError(
            f"{name} is the discriminator of a GAN, which draws nothing itself; sample the GAN "
            f"with sampler.rejection.discriminator={name}"
        )
    return read_generator(folder)


def _generator(path: Path) -> Generator:
    product = convert(path)
    if isinstance(product, Generator):
        return product
    if isinstance(product, GanDiscriminator):
        raise CheckpointError(
            f"{path} is a discriminator, which draws no images; load the file of G or G_ema, and "
            "write this one to a folder with genlab convert for rejection sampling"
        )
    raise CheckpointError(
        f"{path} holds a classifier of noisy images, which draws nothing itself; write it to a "
        "folder with genlab convert, and name that as the classifier of a guidance"
    )


def _not_here(name: str) -> GenLabError:
    zoo = entries()
    if name in zoo:
        return CheckpointError(
            f"the zoo's model {name} is not on this machine yet; fetch it with "
            f"'genlab zoo pull {name}' (licence {zoo[name].licence})"
        )
    return UnknownNameError(
        f"there is no model {name!r}; {nearest(name, [*bundled_names(), *zoo, *beside.names()])}"
    )
