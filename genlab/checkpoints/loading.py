"""`genlab.load`: a name, a folder or an official file becomes a generator."""

from pathlib import Path
from typing import TYPE_CHECKING

from genlab.checkpoints import beside
from genlab.checkpoints.hub.fetch import locate
from genlab.checkpoints.places import find_folder
from genlab.errors import CheckpointError, ConfigError
from genlab.saving.index import INDEX, read_index

if TYPE_CHECKING:  # a name that means nothing is refused without them
    import torch

    from genlab.generators.base import Generator


def load(
    name_or_path: Path | str,
    device: "torch.device | str | None" = None,
    dtype: "torch.dtype | None" = None,
) -> "Generator":
    """Load a generator.

    Args:
        name_or_path: a bundled model (``edm-fmnist``), a zoo model that ``genlab zoo pull`` has
            fetched, an adapter (its folder, or the name of one that ``genlab adapter add`` keeps),
            a folder that ``save_pretrained`` or diffusers wrote, or an official file; or
            ``owner/name`` of the hub, with ``@revision`` where it shall be another one than the
            copy that is here. Names win over folders of the same name in the current folder, and
            all that exists over the hub; ``./name`` is always the folder.
        device: where to put it; None leaves it on the CPU.
        dtype: what the network computes in; None is float32.

    Raises:
        UnknownNameError: there is neither a model nor a file of this name.
        CheckpointError: the folder or file cannot be read.
        ConfigError: an official file does not tell what its network needs to know.
    """
    generator = _find(str(name_or_path))
    return generator if device is None and dtype is None else generator.to(device, dtype)


def _find(name: str) -> "Generator":
    folder = find_folder(name)
    if folder is not None:
        return _read(name, folder)
    name = locate(name)
    if (model := beside.read(name)) is not None:
        return model
    # Readers, families and what they need take seconds to import: not before there is a model.
    from genlab.checkpoints.conversion import is_readable_folder

    path = Path(name)
    if path.is_file() or is_readable_folder(path):
        return _generator(path)
    if not (path / INDEX).is_file():
        raise CheckpointError(
            f"{path} is no model: it has no {INDEX}; give the folder that save_pretrained, "
            "genlab convert or genlab finetune wrote"
        )
    return _read(name, path)


def _read(name: str, folder: Path) -> "Generator":
    from genlab.generators.discriminator import GanDiscriminator
    from genlab.generators.families import read_generator
    from genlab.generators.noisy_classifier import NoisyClassifier

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


def _generator(path: Path) -> "Generator":
    from genlab.checkpoints.conversion import convert
    from genlab.checkpoints.readers.options import MissingArgumentError
    from genlab.generators.base import Generator
    from genlab.generators.discriminator import GanDiscriminator

    try:
        product = convert(path)
    except MissingArgumentError as error:  # there is no place for it but in the file
        raise ConfigError(
            f"{error.what}; write a model that tells it, and name that: "
            f"'genlab convert {path} -o FOLDER {error.setting}'"
        ) from error
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
