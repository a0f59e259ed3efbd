"""``genlab completion``, and what Tab offers: names, found without importing torch."""

from collections.abc import Iterable, Sequence
from typing import Any

import click
from click.shell_completion import CompletionItem, get_completion_class

from genlab.registry import Registry

SHELLS = {
    "bash": 'eval "$(genlab completion bash)"     # and the same line in ~/.bashrc',
    "zsh": 'eval "$(genlab completion zsh)"      # and the same line in ~/.zshrc',
    "fish": "genlab completion fish > ~/.config/fish/completions/genlab.fish",
}
"""Shell -> the line that sets up completion."""

EPILOG = "\b\nHow to switch it on:\n" + "\n".join(f"  {line}" for line in SHELLS.values())

EXTRACTORS = ("cnn-fmnist", "cnn-cifar10")
"""Feature extractors that are classifiers, by their names in `genlab.eval.extractors.base`."""

VARIABLE = "_GENLAB_COMPLETE"
"""The environment variable by which a shell asks for completions."""


@click.command("completion", epilog=EPILOG)
@click.argument("shell", type=click.Choice(list(SHELLS)))
@click.pass_context
def command(context: click.Context, shell: str) -> None:
    """Print what makes Tab complete genlab's commands, models, presets and samplers."""
    completion = get_completion_class(shell)
    assert completion is not None
    click.echo(completion(context.find_root().command, {}, "genlab", VARIABLE).source())


def complete_models(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Bundled models, those of the zoo, kept adapters and copies of the hub's; else files."""
    return _or_files(_items(all_names(), incomplete), incomplete)


def complete_adapters(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Adapters that are kept by name; else files."""
    return _or_files(_items(adapter_names(), incomplete), incomplete)


def complete_zoo(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Bundled models and those of the zoo."""
    return _items(model_names(), incomplete)


def complete_hub(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Models of the hub that have a copy here."""
    return _items(hub_names(), incomplete)


def complete_sampling(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """A model, then settings of the sampler."""
    words = list(ctx.params.get(str(param.name)) or ())
    settings = complete_settings(words, incomplete)
    if words or "=" in incomplete:
        return settings
    models = _items(all_names(), incomplete)
    return _or_files([*models, *settings] if incomplete else models, incomplete)


def complete_settings(words: Sequence[str], incomplete: str) -> list[CompletionItem]:
    """Settings of the sampler that are names: ``sampler.solver.name=heun``.

    Args:
        words: those before; bash makes three of ``KEY=VALUE``, and only the last is replaced.
        incomplete: what is to be completed.
    """
    table = _named_settings()
    before = [word for word in words if word != "="]
    if before and before[-1] in table:
        return _items(table[before[-1]], incomplete)
    return _items((f"{key}={name}" for key, names in table.items() for name in names), incomplete)


def complete_config(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Presets of the command's own kind; else files."""
    return _or_files(_items(_presets(ctx.info_name or ""), incomplete), incomplete)


def complete_training(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """A training preset; else files."""
    if ctx.params.get(str(param.name)):
        return []
    return _or_files(_items(_presets("train"), incomplete), incomplete)


def complete_finetuning(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """A model; else files."""
    if ctx.params.get(str(param.name)):
        return []
    return _or_files(_items(model_names(), incomplete), incomplete)


def complete_methods(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Methods of fine-tuning."""
    return _items(method_names(), incomplete)


def complete_classifiers(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Classifiers that come with the package; else files."""
    return _or_files(_items(classifier_names(), incomplete), incomplete)


def complete_presets(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Presets of all kinds; with the kind where two share a name."""
    from genlab.config import preset_kinds

    pairs = [(kind, name) for kind in preset_kinds() for name in _presets(kind)]
    names = [name for _, name in pairs]
    shown = [name if names.count(name) == 1 else f"{kind}/{name}" for kind, name in pairs]
    return _items(shown, incomplete)


def complete_samplers(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Whatever 'genlab samplers show' knows, by its name; by kind, too, once that is typed."""
    names = sampler_names()
    kind, colon, _ = incomplete.partition(":")
    if colon:
        return _items((f"{kind}:{name}" for name in names.get(kind, ())), incomplete)
    return _items(dict.fromkeys(name for each in names.values() for name in each), incomplete)


def sampler_names() -> dict[str, list[str]]:
    """Kind -> its names and aliases, as `genlab.samplers.catalogue` has them."""
    from genlab.samplers import registries

    kinds: dict[str, Registry[Any]] = {
        "solver": registries.SOLVERS,
        "schedule": registries.SCHEDULES,
        "guidance": registries.GUIDANCE,
        "decoder": registries.DECODERS,
    }
    names = {kind: [*each.in_order(), *each.aliases] for kind, each in kinds.items()}
    families = ["diffusion", "gan", "autoregressive"]
    return {**names, "family": families, "preset": _presets("sampler")}


def all_names() -> list[str]:
    """Whatever stands for a model by its name alone."""
    return [*model_names(), *adapter_names(), *hub_names()]


def model_names() -> list[str]:
    """Bundled models, then those of the zoo."""
    from genlab.checkpoints.bundled import bundled_names
    from genlab.checkpoints.zoo.catalogue import entries

    return [*bundled_names(), *entries()]


def adapter_names() -> list[str]:
    """Adapters that are kept by name."""
    from genlab.finetuning.adapters.folders import kept_adapters

    return list(kept_adapters())


def hub_names() -> list[str]:
    """Models of the hub that have a copy here; the hub is not asked."""
    from genlab.checkpoints.hub.names import kept_names

    return kept_names()


def classifier_names() -> list[str]:
    """Bundled classifiers of noisy images, then those that scores are made with."""
    from genlab.checkpoints.bundled import bundled_folder, bundled_names
    from genlab.files import read_json_object
    from genlab.saving.index import INDEX

    indices = {name: read_json_object(bundled_folder(name) / INDEX) for name in bundled_names()}
    noisy = [name for name, index in indices.items() if index["family"] == "noisy-classifier"]
    return [*noisy, *EXTRACTORS]


def method_names() -> list[str]:
    """The methods of fine-tuning, in the order of their table."""
    from genlab.finetuning.registries import METHODS

    return METHODS.in_order()


def _named_settings() -> dict[str, list[str]]:
    names = sampler_names()
    return {
        "sampler": names["preset"],
        "sampler.solver.name": names["solver"],
        "sampler.schedule.name": names["schedule"],
        "sampler.decoder.name": names["decoder"],
        "sampler.guidance": names["guidance"],
    }


def _presets(kind: str) -> list[str]:
    from genlab.config import preset_names

    return preset_names(kind)


def _items(names: Iterable[str], incomplete: str) -> list[CompletionItem]:
    return [CompletionItem(name) for name in names if name.startswith(incomplete)]


def _or_files(items: list[CompletionItem], incomplete: str) -> list[CompletionItem]:
    """Leave it to the shell to complete a path where no name fits."""
    return items or [CompletionItem(incomplete, type="file")]
