"""``genlab convert``: an official checkpoint becomes a GenLab folder, a DiT one of diffusers."""

from pathlib import Path
from typing import Any

import click

from genlab.cli.common import ANY_PATH, FOLDER, check_model_folder, overrides_argument

EPILOG = """\b
Examples:
  genlab convert edm-cifar10-32x32-cond-vp.pkl -o edm-cifar10/
  genlab convert weights.safetensors -o mine/ --config arguments.json
  genlab convert weights.safetensors -o mine/ cls=EDMPrecond img_resolution=32 img_channels=3 \\
      label_dim=10 model_type=SongUNet 'channel_mult=[2,2,2]'
  genlab convert ddpm-cifar10-32/ -o mine/              # a folder of diffusers
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
    class_names: str | None,
    licence: str | None,
    overwrite: bool,
) -> None:
    """Turn an official checkpoint into a GenLab folder; nothing in it is executed.

    KEY=VALUE settings are arguments of the official constructor, for files that hold nothing but
    tensors; they go over those of --config.
    """
    from genlab.checkpoints import convert
    from genlab.checkpoints.card import Origin, with_card
    from genlab.checkpoints.pull import recognise

    check_model_folder(folder, overwrite=overwrite)
    if to == "genlab":
        _check_no_adapter(source)
    if to == "diffusers":
        _export(source, folder, format_, _arguments(config, overrides))
        return
    generator = convert(source, format_, _arguments(config, overrides))
    origin = Origin.of(source, licence)
    if licence is None:
        origin = recognise(source, origin.sha256) or origin
    names = [name.strip() for name in class_names.split(",")] if class_names else None
    dressed = with_card(generator, folder.resolve().name, origin, names)
    dressed.save_pretrained(folder)
    click.echo(f"{folder}: {_summary(dressed)}")
    sampler = getattr(dressed, "sampler", None)  # a classifier has none
    if sampler is not None:
        click.echo(f"its sampler: {sampler.describe()}")


def _check_no_adapter(source: Path) -> None:
    from genlab.errors import ConfigError
    from genlab.finetuning.adapters.folders import is_adapter

    if is_adapter(source):
        raise ConfigError(
            f"{source} is an adapter of GenLab's, which needs no converting; to make a whole model "
            f"of it: 'genlab adapter merge {source} -o merged/'"
        )


def _export(
    source: Path, folder: Path, format_: str | None, arguments: dict[str, Any] | None
) -> None:
    from genlab import convert, load
    from genlab.checkpoints.diffusers_models import export_dit
    from genlab.finetuning.adapters.merging import merged

    known = format_ is None and arguments is None
    generator = merged(load(source)) if known else convert(source, format_, arguments)
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
    classes = f"{generator.num_classes} classes" if generator.num_classes else "unconditional"
    network = type(generator.network).__name__
    return f"{network}, {parameters / 1e6:.1f}M parameters, {shape}, {classes}"
