"""Class tables of another size: a generator of one's own classes, made of a trained one.

Everything but the tables is shared with the base, so a generator of other classes costs the memory
of its tables. The null class stays what it was: classifier-free guidance works from the first step.
"""

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from genlab import compute
from genlab.errors import ConfigError, LabelError
from genlab.finetuning.class_tables import unconditional
from genlab.finetuning.class_tables.origins import ClassOrigin, Initial, class_origins, read_names
from genlab.finetuning.class_tables.rebuilding import rebuild
from genlab.finetuning.layouts import layout_of
from genlab.networks.base import Network
from genlab.networks.conditional_gan import ConditionalGenerator
from genlab.networks.layout import ClassTable
from genlab.registry import class_path
from genlab.samplers.guidance.base import GUIDANCE
from genlab.saving.models import own_config
from genlab.saving.saved import SavedModel

M = TypeVar("M", bound=SavedModel)
N = TypeVar("N", bound=Network)


def with_classes(
    model: M,
    names: Sequence[str] | int,
    *,
    initial: Initial | Sequence[ClassOrigin] = "mean",
    seed: int = 0,
) -> M:
    """Make a generator of other classes from a trained one, to be fine-tuned.

    The network is built again with new class tables; all its other tensors are the base's own, in
    the same memory: whoever trains one of them changes the base, too, and copies it first. A class
    that begins as one class of the base draws the same images bit for bit (up to rounding in a
    `SongUNet` of another number of classes, which scales its columns by its square root). So does
    the null class, always, where the base was trained with one; where it was not, the new generator
    has none either, and takes no guidance by it.

    - Tables. DiT, ADM and PixelCNNs have a row for each class (DiffusersDiT, PixelCNNs and a BigGAN
      without a shared embedding one in every layer), EDM's U-Nets a column; all are made anew. The
      null class stays: the last row (DiT, DiffusersDiT), the layer's bias (SongUNet), or nothing.
    - A discriminator (`GanDiscriminator`) projects on rows that are spectrally normalised as a
      whole, so rows that it keeps are scaled by another number than before. Its calibration, of
      other classes, is dropped.
    - One class is a table of one row.
    - No class (``names=0``) makes a network without tables, for data without classes: what the base
      adds for its null class becomes part of biases (see
      `genlab.finetuning.class_tables.unconditional`), so it draws what the base draws without a
      class, up to rounding; from a base without a null class what it draws for the mean of all
      classes. GANs and DiffusersDiT always have classes: give
      such data one class in common.
    - A base without classes gets tables of zeros: every class begins as what the base draws, which
      is the null class from then on. Or "random" ones.

    Preconditioning, autoencoder and default sampler are kept; out of the sampler goes what does not
    apply any more: guidance by the class where there is none, and models trained for the old
    classes (guides, classifiers, discriminators, small models that take steps).

    Args:
        model: the base: a generator of any family, or a discriminator. It is not changed.
        names: of the new classes, or their number where they have no names; 0 is none.
        initial: where each class begins, see `class_origins`; or what that function returned.
        seed: of "random".

    Returns:
        The same kind of model, without a card.

    Raises:
        LabelError: a name is empty, twice, unknown or left out, or there are no names to match.
        ConfigError: the network has no class tables to change, is not plain, or cannot do without
            classes.
    """
    count, named = read_names(names)
    if isinstance(initial, str | Mapping):
        origins = class_origins(model, names, initial, seed=seed)
    else:
        labels = named or tuple(map(str, range(count)))
        origins = _check_origins(tuple(initial), labels, model.num_classes)
    metadata: dict[str, Any] = {**model.metadata(), **model.parts()}
    null = bool(metadata.get("has_null_class"))
    base: Any = model.network
    network = network_with_classes(base, origins, has_null_class=null)
    metadata["class_names"] = None if named is None else list(named)
    if "has_null_class" in metadata and model.num_classes == 0:
        # A DiT may be configured without a row for it.
        metadata["has_null_class"] = count > 0 and getattr(network, "null_class", True)
    if "sampler" in metadata:
        metadata["sampler"] = _fitting(metadata["sampler"], classes=count > 0)
    if "calibration" in metadata:
        metadata["calibration"] = None
    return type(model).from_metadata(network, metadata, None)


def network_with_classes(
    network: N, origins: Sequence[ClassOrigin], *, has_null_class: bool = True
) -> N:
    """Build a network again with other classes; see `with_classes`.

    Args:
        network: a plain one, for instance a discriminator in training. It is not changed.
        origins: where each new class begins.
        has_null_class: whether the network was trained without a class, too; it counts only where
            there are no new classes.

    Raises:
        ConfigError: see `with_classes`.
    """
    argument = _class_argument(network)
    num_old: int = own_config(network)[argument]
    _check_origins(origins, [origin.name for origin in origins], num_old)
    if not origins:
        unconditional.check(type(network))
    tables = {table.layer: table for table in layout_of(network).tables}
    new = {f"{t.layer}.{name}" for t in tables.values() for name in ("weight", *t.vectors)}
    result = rebuild(network, new=new, **{argument: len(origins)})
    drawn = _draw(result, origins, network.device)
    for table in layout_of(result).tables:
        if table.layer in tables:
            weight = _begun(network, tables[table.layer], table, origins, drawn)
        else:
            weight = _from_nothing(network, result, table, origins, drawn)
        result.get_submodule(table.layer).weight = nn.Parameter(weight)
        _renew_vectors(result, table)
    if isinstance(result, ConditionalGenerator) and result.num_reference:
        # Every class in turn, as when it is built.
        classes = torch.arange(result.num_reference, device=result.reference_labels.device)
        result.reference_labels = classes % len(origins)
    if not origins and num_old:
        weights = torch.full((1, num_old), 1 / num_old, device=network.device)
        with torch.no_grad():
            unconditional.absorb(result, network, None if has_null_class else weights)
    return result


@torch.no_grad()
def _begun(
    network: Network,
    old: ClassTable,
    new: ClassTable,
    origins: Sequence[ClassOrigin],
    drawn: nn.Module | None,
) -> Tensor:
    """The weight of a new table that begins with an old one."""
    rows = _rows_of(network, old)
    num_old = len(rows) - old.null_row
    fresh = None if drawn is None else _rows_of(drawn, new).to(rows)
    ratio = old.scale / new.scale
    begun = [
        fresh[number]
        if fresh is not None and origin.rule == "random"
        else _mean(rows, origin.old or range(num_old), ratio)
        for number, origin in enumerate(origins)
    ]
    whole = torch.stack([*begun, *rows[num_old:]])
    return whole.movedim(0, old.axis).contiguous()


def _mean(rows: Float[Tensor, "R D"], numbers: Sequence[int], factor: float) -> Float[Tensor, " D"]:
    """The mean of some rows; one row is copied bit for bit, where the factor is 1."""
    if len(numbers) == 1 and factor == 1:
        return rows[numbers[0]]
    chosen = rows[list(numbers)].to(compute.widest(rows.device))
    return (factor * chosen.mean(0)).to(rows.dtype)


@torch.no_grad()
def _from_nothing(
    network: Network,
    result: Network,
    table: ClassTable,
    origins: Sequence[ClassOrigin],
    drawn: nn.Module | None,
) -> Tensor:
    """The weight of a table where the base has none; its layer's bias, which is new, adds nothing.

    The null row is zero: without a class the network computes what the base does.
    """
    layer = result.get_submodule(table.layer)
    like = next(network.parameters()).detach()
    for name, parameter in layer.named_parameters():
        zeros = torch.zeros(parameter.shape, device=like.device, dtype=like.dtype)
        layer.register_parameter(name, nn.Parameter(zeros))
    weight = layer.weight
    assert isinstance(weight, Tensor)
    rows = weight.detach().movedim(table.axis, 0)
    if drawn is not None:
        number = len(origins)
        rows[:number] = _rows_of(drawn, table)[:number].to(rows)
    return weight.detach()


def _rows_of(network: nn.Module, table: ClassTable) -> Float[Tensor, "R D"]:
    return network.get_parameter(f"{table.layer}.weight").detach().movedim(table.axis, 0)


def _draw(network: N, origins: Sequence[ClassOrigin], device: torch.device) -> N | None:
    """The network as it would begin to train from scratch; None where it is not needed.

    How a table is drawn only its network knows, so all of it is drawn: on the CPU, where the same
    seed draws the same for every device, or nowhere where the base has no numbers either.
    """
    seeds = {origin.seed for origin in origins if origin.rule == "random"}
    if not seeds:
        return None
    [seed] = seeds
    assert seed is not None  # a `ClassOrigin` sees to it
    with (
        torch.random.fork_rng(devices=()),
        torch.device("meta" if device.type == "meta" else "cpu"),
    ):
        torch.default_generator.manual_seed(seed)
        return type(network)(**own_config(network))


@torch.no_grad()
def _renew_vectors(network: nn.Module, table: ClassTable) -> None:
    """Give a spectrally normalised table its own singular vectors: they have an entry a class."""
    if not table.vectors:
        return
    layer = network.get_submodule(table.layer)
    weight = _rows_of(network, table)
    left = torch.linalg.svd(weight.to(compute.widest(weight.device)), full_matrices=False).U
    for number, name in enumerate(table.vectors):
        if number < left.shape[1]:
            vector = left[:, number]
        else:  # more vectors than classes; the first one alone divides
            vector = nn.functional.normalize(torch.ones_like(left[:, 0]), dim=0)
        setattr(layer, name, vector[None].to(layer.get_buffer(name).dtype))


def _class_argument(network: nn.Module) -> str:
    """The constructor argument that holds the number of classes.

    Raises:
        ConfigError: there is none.
    """
    config = own_config(network)
    # In this order: a plain conditional GAN calls the width of its class vectors label_dim.
    for argument in ("num_classes", "label_dim"):
        if argument in config:
            return argument
    raise ConfigError(
        f"{class_path(type(network))} is not configured by a number of classes, so it cannot get "
        "others; choose another model"
    )


def _check_origins(
    origins: Sequence[ClassOrigin], names: Sequence[str], num_old: int
) -> tuple[ClassOrigin, ...]:
    """Refuse origins that are not those of these classes, or name classes that the base lacks."""
    origin_names = [origin.name for origin in origins]
    if origin_names != list(names):
        raise LabelError(
            f"initial says where {len(origin_names)} classes begin ({', '.join(origin_names)}) "
            f"and there are {len(names)} ({', '.join(names)}); give one for each, in the same order"
        )
    if len({origin.seed for origin in origins if origin.rule == "random"}) > 1:
        raise ConfigError("classes that begin at random need one seed in common")
    for origin in origins:
        wrong = next((number for number in origin.old if not 0 <= number < num_old), None)
        if wrong is not None:
            raise LabelError(
                f"{origin.name!r} is to begin as class {wrong}, and the base has {num_old} "
                "classes; take the base that it was made for"
            )
        if (origin.rule == "zero") != (num_old == 0) and origin.rule != "random":
            has = f"has {num_old}" if num_old else "has no"
            raise LabelError(
                f"{origin.name!r} is to begin by the rule {origin.rule!r}, and the base {has} "
                "classes; take the base that it was made for"
            )
    return tuple(origins)


def _fitting(sampler: Mapping[str, Any], *, classes: bool) -> dict[str, Any]:
    """The settings of a base's default sampler that apply to a model of other classes or none."""
    of_old_classes = ("stitch", "rejection", "langevin")
    kept = {key: value for key, value in sampler.items() if key not in of_old_classes}
    if "guidance" in kept:
        kept["guidance"] = [
            entry for entry in kept["guidance"] if classes and not GUIDANCE.build_named(entry).parts
        ]
    if "guidance_scale" in kept and not classes:
        kept["guidance_scale"] = 1.0
    return kept
