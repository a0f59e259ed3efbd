"""``genlab adapter``: look at adapters, keep them by name, merge them."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from genlab.cli.common import DTYPE, FOLDER, echo_json, json_option, print_table
from genlab.cli.completion import complete_adapters

if TYPE_CHECKING:  # torch is imported only when an adapter is read: --help answers at once
    from genlab.finetuning.adapters.adapter import Adapter

EPILOG = """\b
Examples:
  genlab finetune dit-fmnist --data photos/ -o my-model/ data.fit=resize data.channels=1
  genlab sample my-model/ --seeds 0-63                   # an adapter stands wherever a model does
  genlab adapter show my-model/                          # method, base, classes; does the base fit?
  genlab adapter add my-model/ --name lamps              # then: genlab sample lamps
  genlab adapter list runs/
  genlab adapter merge my-model/ -o merged/              # one plain model, without the adapter
  genlab sample dit-fmnist --adapter lamps               # where the base has another name here

An adapter is a folder: adapter_config.json and adapter_model.safetensors (those of LoRA are peft's
own files), and README.md. It holds what fine-tuning has changed, some kilobytes to megabytes, and
the name and SHA-256 of its base, whose weights it does not hold. Send it to anybody who has the
base. Nothing in it is executed."""

base_option = click.option(
    "--base", metavar="MODEL", help="Its base, in place of the one that it names."
)


@click.group("adapter", epilog=EPILOG)
def command() -> None:
    """Look at adapters of 'genlab finetune' or peft, keep them by name, merge them."""


@command.command("show")
@click.argument("adapter", metavar="ADAPTER", shell_complete=complete_adapters)
@base_option
@json_option
def show(adapter: str, base: str | None, as_json: bool) -> None:
    """Show what ADAPTER is: its method, its base and whether that is here, its classes.

    ADAPTER is a folder, or the name that 'genlab adapter add' gave it.
    """
    from genlab.finetuning.adapters.describing import base_state, describe_adapter, describe_lines

    read = _read(adapter)
    metadata = describe_adapter(read, base_state(read, base))
    if as_json:
        echo_json(metadata)
        return
    rows = describe_lines(metadata)
    width = max(map(len, rows))
    for row, text in rows.items():
        click.echo(f"{row:<{width}}  {text}")


@command.command("list")
@click.argument("folder", type=FOLDER, required=False)
@json_option
def list_adapters(folder: Path | None, as_json: bool) -> None:
    """List the adapters below FOLDER.

    Without FOLDER: those that are kept by name, and those below the current folder.
    """
    from genlab.errors import ConfigError

    if folder is not None and not folder.is_dir():
        raise ConfigError(f"there is no folder {folder}; check the path")
    rows = adapter_rows(Path() if folder is None else folder, kept=folder is None)
    if as_json:
        echo_json(rows)
        return
    if not rows:
        where = "kept, or below this folder" if folder is None else f"below {folder}"
        click.echo(f"there is no adapter {where}; 'genlab finetune' makes one")
        return
    columns = ("name", "method", "base", "classes", "size", "folder")
    print_table(columns, [_cells(row) for row in rows])


def adapter_rows(folder: Path, *, kept: bool) -> list[dict[str, Any]]:
    """A row for each adapter: first those kept by name, then those below a folder."""
    from genlab.finetuning.adapters.folders import adapters_under, kept_adapters
    from genlab.finetuning.adapters.overview import overview

    kept_folders = kept_adapters() if kept else {}
    rows = [overview(path) | {"kept": True} for path in kept_folders.values()]
    places = {path.resolve() for path in kept_folders.values()}
    others = [path for path in adapters_under(folder) if path.resolve() not in places]
    return rows + [overview(path) | {"kept": False} for path in others]


def _cells(row: dict[str, Any]) -> list[str]:
    classes, size = row["classes"], row["bytes"]
    return [
        row["name"],
        row["method"] or "unknown",
        row["fault"] or row["base"] or "not named",
        "the base's" if classes is None else str(classes),
        "" if size is None else f"{size / 1000:,.1f} kB",
        "kept" if row["kept"] else row["folder"],
    ]


@command.command("add")
@click.argument("folder", type=FOLDER)
@click.option("--name", metavar="NAME", help="Default: the folder's own name.")
def add(folder: Path, name: str | None) -> None:
    """Keep the adapter in FOLDER under a name, by which every command then finds it.

    It is copied to $GENLAB_HOME/adapters; the training run beside it is not.
    """
    from genlab.finetuning.adapters.adapter import read_adapter
    from genlab.finetuning.adapters.folders import keep

    read = read_adapter(folder)  # what is damaged is not kept
    name = name or read.name
    target = keep(folder, name)
    click.echo(f"{target}: use it as '{name}', for instance 'genlab sample {name}'")


@command.command("remove")
@click.argument("name", shell_complete=complete_adapters)
def remove(name: str) -> None:
    """Remove the adapter that is kept as NAME; the folder that it came from stays."""
    from genlab.finetuning.adapters.folders import forget

    forget(name)
    click.echo(f"{name} is removed")


@command.command("merge")
@click.argument("adapter", metavar="ADAPTER", shell_complete=complete_adapters)
@click.option("-o", "--output", type=FOLDER, required=True, help="The model's folder to write.")
@base_option
@click.option("--dtype", type=DTYPE, help="What the weights are stored in; default: float32.")
def merge(adapter: str, output: Path, base: str | None, dtype: str | None) -> None:
    """Write ADAPTER and its base as one plain model, which draws the same up to rounding.

    Methods whose additions are no part of weights (adapter, vpt) cannot be merged: sample their
    folders as they are.
    """
    from genlab.errors import ConfigError
    from genlab.finetuning.adapters.folders import is_adapter
    from genlab.finetuning.adapters.loading import load_adapter
    from genlab.finetuning.adapters.merging import merged, merged_card

    if is_adapter(output):
        raise ConfigError(f"{output} holds an adapter; give -o another folder")
    read = _read(adapter)
    model = merged(load_adapter(read, base), merged_card(read))
    if dtype is not None:
        import torch

        model.to(dtype=getattr(torch, dtype))
    model.save_pretrained(output)
    click.echo(f"{output}: {read.name} merged into {base or read.metadata.base}")


def _read(adapter: str) -> "Adapter":
    from genlab.finetuning.adapters.adapter import read_adapter
    from genlab.finetuning.adapters.loading import folder_of

    return read_adapter(folder_of(adapter))
