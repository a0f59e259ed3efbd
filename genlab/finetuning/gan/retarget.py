"""A GAN's classes changed without images: class vectors are moved until a classifier is satisfied.

Nothing but one vector of the class table changes for each class, so the generator draws what it can
draw already; only the vector of each class is searched.

Legend: E numbers of a class vector, N images, C channels, H and W height and width.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from genlab.data.labels import plain_name
from genlab.diffusion.noise import NoiseStream
from genlab.errors import LabelError
from genlab.finetuning.class_tables.classes import with_classes
from genlab.finetuning.class_tables.origins import ClassOrigin, read_names
from genlab.finetuning.gan.classifier import ImageClassifier
from genlab.finetuning.gan.search import ClassSearch, FoundClass, RetargetConfig
from genlab.finetuning.layouts import layout_of
from genlab.generators.gan import GanGenerator
from genlab.samplers.base import SamplerLike
from genlab.samplers.gan.sampler import GanSampler

JUDGED_IMAGES = 256
"""Images of each class that `recognised` looks at."""


@dataclass(frozen=True, kw_only=True)
class Retargeted:
    """A generator of other classes.

    Attributes:
        generator: shares all but its class table with the base.
        origins: where its classes stood before their vectors were found, as `with_classes` takes
            them.
        found: what was looked for, in the order of the targets.
    """

    generator: GanGenerator
    origins: tuple[ClassOrigin, ...]
    found: tuple[FoundClass, ...]


def retarget(
    generator: GanGenerator,
    classifier: ImageClassifier,
    targets: Mapping[str, int] | Sequence[str],
    config: RetargetConfig | None = None,
    *,
    keep: bool = False,
    sampler: SamplerLike = None,
    on_step: Callable[[int], None] = lambda steps: None,
) -> Retargeted:
    """Give a GAN classes that a classifier knows, without any image.

    Each class vector is moved by itself, down the classifier's cross-entropy, and is kept within
    the least and the largest number of the base's table. Judge the result by another classifier:
    this one can be fooled.

    Args:
        generator: the base; it is not changed. Its statistics stay those of its own classes.
        classifier: what says which images are of a class.
        targets: names of the new classes, or name -> number of the class in the classifier; without
            numbers the classifier must know the names.
        config: None takes the defaults.
        keep: whether the base's classes stay, the new ones behind them (a new one of the same name
            takes the old one's place); else the new ones are all that there are.
        sampler: how latents are drawn; None is the generator's own way.
        on_step: called with the number of steps done since the last call; there are
            `attempts` times `RetargetConfig.steps_in_all` for each class.

    Raises:
        ConfigError: the generator has a table of classes in every layer, so that no vector stands
            for a class; the classifier looks at images of other channels; a setting does not fit
            classifier or generator.
        LabelError: the classifier knows no such class, or "own" finds no class of that name.
    """
    config = config or RetargetConfig()
    numbers, search = _prepare(generator, classifier, targets, config, sampler)
    with generator.statistics(search.sampler):
        classes = tuple(search.find(name, target, on_step) for name, target in numbers.items())
    vectors = {each.name: each.vector for each in classes}
    changed, origins = _with_vectors(generator, vectors, keep=keep)
    return Retargeted(generator=changed, origins=origins, found=classes)


def check_retargeting(
    generator: GanGenerator,
    classifier: ImageClassifier,
    targets: Mapping[str, int] | Sequence[str],
    config: RetargetConfig,
    sampler: SamplerLike = None,
) -> dict[str, int]:
    """Check everything that `retarget` would refuse, without any search.

    Args:
        generator: see `retarget`, as the others.
        classifier: what says which images are of a class.
        targets: names of the new classes, or name -> number of the class in the classifier.
        config: how vectors are moved.
        sampler: how latents are drawn.

    Returns:
        Name -> number of the class in the classifier.

    Raises:
        ConfigError: see `retarget`.
        LabelError: see `retarget`.
    """
    return _prepare(generator, classifier, targets, config, sampler)[0]


def draw_vectors(
    generator: GanGenerator,
    vectors: Sequence[Float[Tensor, " E"]],
    seeds: Sequence[int],
    sampler: SamplerLike = None,
) -> Float[Tensor, "N C H W"]:
    """Images of class vectors, those of the first vector first; each with the latents of the seeds.

    Args:
        generator: the base.
        vectors: of its class table, or any others.
        seeds: as `Generator.sample` takes them; they give the same latents.
        sampler: None is the generator's own way.
    """
    built: GanSampler = generator.build_sampler(sampler)
    generator.prepare()
    images = []
    with torch.no_grad(), generator.statistics(built):
        for vector in vectors:
            noise = NoiseStream(seeds, generator.device)
            z = built.latents(noise, generator.network.dim_z)
            images.append(generator.draw_embedding(z, vector.expand(len(z), -1), built))
    return torch.cat(images)


def recognised(
    generator: GanGenerator,
    vector: Float[Tensor, " E"],
    judge: ImageClassifier,
    target: int,
    sampler: SamplerLike = None,
    seeds: Sequence[int] = range(JUDGED_IMAGES),
) -> float:
    """The share of a class vector's images, 0 to 1, that a classifier takes for a class.

    Args:
        generator: the base.
        vector: of a class.
        judge: not the classifier that the vector was moved by, which may have been fooled.
        target: number of the class in ``judge``.
        sampler: None is the generator's own way.
        seeds: of the images.

    Raises:
        ConfigError: the judge looks at images of other channels.
    """
    images = draw_vectors(generator, [vector], seeds, sampler).to(torch.float32)
    with torch.no_grad():
        logits = judge.logits(judge.fit(images))
    return float((logits.argmax(1) == target).double().mean())


def _prepare(
    generator: GanGenerator,
    classifier: ImageClassifier,
    targets: Mapping[str, int] | Sequence[str],
    config: RetargetConfig,
    sampler: SamplerLike,
) -> tuple[dict[str, int], ClassSearch]:
    numbers = _numbers(targets, classifier)
    search = ClassSearch(generator, classifier, config, sampler)
    search.check(list(numbers))
    return numbers, search


def _numbers(targets: Mapping[str, int] | Sequence[str], judge: ImageClassifier) -> dict[str, int]:
    _, names = read_names(list(targets))
    assert names is not None
    if not isinstance(targets, Mapping):
        return {name: judge.find_class(name) for name in names}
    for name, number in targets.items():
        if not 0 <= number < judge.num_classes:
            raise LabelError(
                f"{name!r} is to be class {number} of the classifier {judge.name}, which knows "
                f"0 ... {judge.num_classes - 1}"
            )
    return dict(targets)


@torch.no_grad()
def _with_vectors(
    generator: GanGenerator, vectors: Mapping[str, Float[Tensor, " E"]], *, keep: bool
) -> tuple[GanGenerator, tuple[ClassOrigin, ...]]:
    """The generator with these classes, and where `with_classes` began them."""
    old = generator.class_names or tuple(map(str, range(generator.num_classes)))
    kept = list(old) if keep else []
    rows = {plain_name(name): row for row, name in enumerate(kept)}
    added = [name for name in vectors if plain_name(name) not in rows]
    origins = [ClassOrigin(name=n, rule="chosen", old=(i,)) for i, n in enumerate(kept)]
    origins += [ClassOrigin(name=name, rule="mean") for name in added]
    names = [*kept, *added]
    rows |= {plain_name(name): len(kept) + row for row, name in enumerate(added)}
    result = with_classes(generator, names, initial=origins)
    [table] = layout_of(result.network).tables
    layer = result.network.get_submodule(table.layer)
    weight = layer.weight
    assert isinstance(weight, Tensor)
    for name, vector in vectors.items():
        weight.movedim(table.axis, 0)[rows[plain_name(name)]] = vector.to(weight)
    return result, tuple(origins)
