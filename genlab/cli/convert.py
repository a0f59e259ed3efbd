"""``genlab convert``: an official checkpoint becomes a GenLab folder, a DiT one of diffusers."""

from pathlib import Path
from typing import Any

import click

from genlab.cli.common import (
    ANY_PATH,
    FOLDER,
    autoencoder_option,
    check_model_folder,
    overrides_argument,
)

EPILOG = """\b
Examples:
  genlab convert edm-cifar10-32x32-cond-vp.pkl -o edm-cifar10/
  genlab convert weights.safetensors -o mine/ --config arguments.json
  genlab convert weights.safetensors -o mine/ cls=EDMPrecond img_resolution=32 img_channels=3 \\
      label_dim=10 model_type=SongUNet 'channel_mult=[2,2,2]'
  genlab convert ddpm-cifar10-32/ -o mine/              # a folder of diffusers
  genlab convert my-dit.pt -o my-dit/ --autoencoder sd-vae/    # a model of that VAE's latents
  genlab convert my-dit/ -o with-vae/ --autoencoder stabilityai/sd-vae-ft-ema
  genlab convert my-dit/ -o out/ --to diffusers         # and back: a DiTPipeline"""


@click.command("convert", epilog=EPILOG)
@click.argument("source", type=ANY_PATH)
@overrides_argument
@click.option("-o", "--out", "folder", type=FOLDER, required=True, help="The folder to write.")
@click.option("--format", "format_", metavar="NAME", help="How to read SOURCE; default: guessed.")
@click.option(
    "--config",
    type=ANY_PATH,
    metavar="FILE",
    help="JSON or YAML: the official constructor's arguments, where SOURCE has none.",
)
@click.option(
    "--to",
    type=click.Choice(["genlab", "diffusers"]),
    default="genlab",
    show_default=True,
    help="What to write; diffusers: SOURCE is any DiT that GenLab loads, by name, too.",
)
@autoencoder_option
@click.option("--class-names", metavar="A,B,...", help="Names of the classes, in their order.")
@click.option("--licence", metavar="TEXT", help="Licence of SOURCE, for the model card.")
@click.option("--overwrite", is_flag=True, help="Replace the model that is in the folder.")
def command(
    source: Path,
    overrides: tuple[str, ...],
    folder: Path,
    format_: str | None,
    config: Path | None,
    to: str,
    autoencoder: str | None,
    class_names: str | None,
    licence: str | None,
    overwrite: bool,
) -> None:
    """Turn an official checkpoint into a GenLab folder; nothing in it is executed.

    KEY=VALUE settings are arguments of the official constructor, for files that hold nothing but
    tensors; they go over those of --config. --autoencoder is written beside a model of latents,
    which then draws images; with it SOURCE may also be any model that GenLab loads. A name is that
    of a model that has one, or of a repository of the Hugging Face hub that 'hf download' or
    'genlab zoo pull' has fetched.
    """
    from genlab.checkpoints import convert
    from genlab.checkpoints.autoencoders import attach_autoencoder
    from genlab.checkpoints.card import Origin, with_card
    from genlab.checkpoints.zoo.pull import recognise

    check_model_folder(folder, overwrite=overwrite)
    if to == "genlab":
        _check_no_adapter(source)
    if to == "diffusers":
        _export(source, folder, format_, _arguments(config, overrides), autoencoder)
        return
    arguments = _arguments(config, overrides)
    names = [name.strip() for name in class_names.split(",")] if class_names else None
    if autoencoder is not None and format_ is None and arguments is None and _is_ours(source):
        _refuse_licence(licence, source)
        model = _with_autoencoder(source, autoencoder, names)
    else:
        generator = convert(source, format_, arguments)
        if autoencoder is not None:
            generator = attach_autoencoder(generator, autoencoder)
        origin = Origin.of(source, licence)
        if licence is None:
            origin = recognise(source, origin.sha256) or origin
        model = with_card(generator, folder.resolve().name, origin, names)
    model.save_pretrained(folder)
    click.echo(f"{folder}: {_summary(model)}")
    sampler = getattr(model, "sampler", None)  # a classifier has none
    if sampler is not None:
        click.echo(f"its sampler: {sampler.describe()}")
    if getattr(model, "draws_latents", False):
        click.echo(_NOTE)


_NOTE = (
    "these are latents: the model has no autoencoder to make images of them; --autoencoder FOLDER "
    "attaches one, here or when sampling"
)


def _is_ours(source: Path) -> bool:
    """Whether this is a model that is converted already, by folder or name."""
    from genlab.checkpoints.conversion import is_readable_folder

    return not source.is_file() and not is_readable_folder(source)


def _refuse_licence(licence: str | None, source: Path) -> None:
    if licence is not None:
        raise click.UsageError(f"{source} has a model card; --licence is of official files")


def _with_autoencoder(source: Path, autoencoder: str, names: list[str] | None) -> Any:
    """A model that is converted already, with an autoencoder and its own card."""
    from genlab import load
    from genlab.checkpoints.card import updated_card
    from genlab.finetuning.adapters.merging import merged

    model = merged(load(source, autoencoder=autoencoder))
    model = model if names is None else model.changed(class_names=names)
    model.card = None if model.card is None else updated_card(model.card, model)
    return model


def _check_no_adapter(source: Path) -> None:
    from genlab.errors import ConfigError
    from genlab.finetuning.adapters.folders import is_adapter

    if is_adapter(source):
        raise ConfigError(
            f"{source} is an adapter of GenLab's, which needs no converting; to make a whole model "
            f"of it: 'genlab adapter merge {source} -o merged/'"
        )


def _export(
    source: Path,
    folder: Path,
    format_: str | None,
    arguments: dict[str, Any] | None,
    autoencoder: str | None,
) -> None:
    from genlab import convert, load
    from genlab.checkpoints.autoencoders import attach_autoencoder
    from genlab.checkpoints.readers.diffusers_models import export_dit
    from genlab.finetuning.adapters.merging import merged

    is_loadable = format_ is None and arguments is None
    generator = merged(load(source)) if is_loadable else convert(source, format_, arguments)
    if autoencoder is not None:
        generator = attach_autoencoder(generator, autoencoder)
    for note in export_dit(generator, folder):
        click.echo(f"note: {note}", err=True)
    click.echo(f"{folder}: {_summary(generator)}, for diffusers")


def _arguments(config: Path | None, overrides: tuple[str, ...]) -> dict[str, Any] | None:
    """The official constructor's arguments; None where none are given."""
    if config is None and not overrides:
        return None
    from genlab.checkpoints.arguments import read_arguments

    return read_arguments(config, overrides)


def _summary(generator: Any) -> str:
    parameters = sum(parameter.numel() for parameter in generator.network.parameters())
    shape = " x ".join(map(str, generator.image_shape))
    shape += " latents" * getattr(generator, "draws_latents", False)
    classes = f"{generator.num_classes} classes" if generator.num_classes else "unconditional"
    network = type(generator.network).__name__
    return f"{network}, {parameters / 1e6:.1f}M parameters, {shape}, {classes}"
