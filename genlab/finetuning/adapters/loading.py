"""`genlab.load`: also of adapters, whose base is found by name."""

from pathlib import Path
from typing import TYPE_CHECKING

from genlab.checkpoints import loading
from genlab.checkpoints.hub.fetch import locate
from genlab.errors import CheckpointError, ConfigError, UnknownNameError
from genlab.finetuning.adapters.folders import check_no_adapter, find_adapter, kept_adapters

if TYPE_CHECKING:  # most models need no fine-tuning, and a name that means nothing no torch
    import torch

    from genlab.finetuning.adapters.adapter import Adapter
    from genlab.generators.autoencoder import Autoencoder
    from genlab.generators.base import Generator


def load(
    name_or_path: Path | str,
    device: "torch.device | str | None" = None,
    dtype: "torch.dtype | None" = None,
    *,
    adapter: Path | str | None = None,
    autoencoder: "Path | str | Autoencoder | None" = None,
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
        adapter: one that was trained on this model; the result is the adapted model.
        autoencoder: makes images of a latent diffusion model's latents, in place of its own where
            it has one: a folder or a name, see
            `genlab.checkpoints.autoencoders.find_autoencoder`.

    Raises:
        UnknownNameError: there is neither a model nor a file of this name.
        CheckpointError: the folder or file cannot be read, or the adapter is another model's.
        ConfigError: a setting is wrong, or the autoencoder is of other latents.
    """
    if adapter is None:
        generator = loading.load(name_or_path)
    else:
        generator = load_adapter(adapter, base=str(name_or_path))
    if autoencoder is not None:
        from genlab.checkpoints.autoencoders import attach_autoencoder

        generator = attach_autoencoder(generator, autoencoder)
    return generator if device is None and dtype is None else generator.to(device, dtype)


def load_adapter(
    adapter: "Path | str | Adapter", base: "Generator | str | None" = None
) -> "Generator":
    """Load an adapter onto its base.

    Args:
        adapter: a folder that ``genlab finetune`` or peft wrote, the name of one that ``genlab
            adapter add`` keeps, or what `read_adapter` gave.
        base: the model that it belongs to, loaded or by name; None takes the one that the adapter
            names. Loaded, its tensors are shared.

    Raises:
        UnknownNameError: no adapter is kept under this name.
        CheckpointError: the adapter is damaged, its base is not here, or it is another model's.
        ConfigError: the adapter names no base, or the base is an adapter itself.
    """
    from genlab.finetuning.adapters.adapter import Adapter, apply, read_adapter
    from genlab.generators.base import Generator

    read = adapter if isinstance(adapter, Adapter) else read_adapter(folder_of(adapter))
    if isinstance(base, Generator):
        return apply(read, base)
    return apply(read, load_base(read, base), base)


def load_base(adapter: "Adapter", name: str | None = None) -> "Generator":
    """The model that an adapter belongs to; whether it is that very one, `apply` finds out.

    Args:
        adapter: read.
        name: of the base; None takes the one that the adapter names.

    Raises:
        CheckpointError: the base is not here.
        ConfigError: the adapter names no base, or the base is an adapter itself.
    """
    base = adapter.metadata.base if name is None else name
    folder = adapter.folder
    if base is None:
        raise ConfigError(
            f"the adapter in {folder} does not name its base; name it: 'genlab sample MODEL "
            f'--adapter {folder}\', or genlab.load("MODEL", adapter="{folder}")'
        )
    try:
        check_no_adapter(base)
        return loading.load(base)
    except (UnknownNameError, CheckpointError) as error:
        if name is not None:
            raise
        raise CheckpointError(
            f"the adapter in {folder} belongs to the model {base}, which cannot be loaded here "
            f"({error}); name it by --adapter: 'genlab sample MODEL --adapter {folder}'"
        ) from error


def folder_of(adapter: Path | str) -> Path:
    """The folder of an adapter, by its path or the name that it is kept under.

    Raises:
        UnknownNameError: neither is there.
        CheckpointError: it is a fine-tuning run that has stored none yet.
    """
    folder = find_adapter(str(adapter))
    if folder is not None:
        return folder
    path = Path(locate(str(adapter)))
    if path.exists() or path.parent != Path():
        return path
    kept = ", ".join(kept_adapters()) or "none"
    raise UnknownNameError(
        f"there is no adapter {str(adapter)!r}: neither a folder nor the name of a kept one "
        f"({kept})"
    )
