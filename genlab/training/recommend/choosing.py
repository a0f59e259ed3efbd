"""Which network suits a data set, the minutes that there are, and this machine.

The rules stand here and in `genlab.training.recommend.candidates`; docs/training.md tells them in
words.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from genlab.errors import ConfigError, DataError, is_out_of_memory
from genlab.training.loop.batches import DataMetadata
from genlab.training.recommend.candidates import FAMILIES, Candidate, Family
from genlab.training.recommend.speed import Speed

FEWEST_IMAGES = 50
"""Below so many nothing is recommended."""

MOST_PASSES = 400
"""How often few images are shown at most. A rule of thumb: EDM's 4,000 passes over CIFAR-10 are for
50,000 images; the fewer there are, the sooner a network draws them from memory."""

TRAINING_SHARE = 0.9
"""What is left of the minutes for training: previews, snapshots and states take the rest."""

ENLARGE = 1.25
"""Up to this factor an image is set into a black border; of a larger one little would be left."""

FAST_GAIN = 1.1
"""Bfloat16 is taken where it trains so many times as fast as float32."""

Measure = Callable[[Candidate, str], Speed]
"""Times the training of a candidate in a ``mixed_precision``; fails as torch does where memory does
not suffice."""


@dataclass(frozen=True, kw_only=True)
class SetMetadata:
    """The properties of a data set that the choice depends on.

    Attributes:
        path: as it is to stand in the configuration.
        num_images: how many there are.
        image_shape: (C, H, W) as they are stored.
        num_classes: 0 without labels.
        used_classes: how many of them have images.
        class_names: or None where they have none.
        held_out: the name of another part of the set, to judge by; None where there is none.
    """

    path: str
    num_images: int
    image_shape: tuple[int, int, int]
    num_classes: int
    used_classes: int
    class_names: tuple[str, ...] | None = None
    held_out: str | None = None

    @property
    def has_classes(self) -> bool:
        """Whether there are classes to tell apart."""
        return self.used_classes > 1


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What the user wants.

    Attributes:
        family: one of `FAMILIES`.
        minutes: that the run may take on this machine.
        size: height and width to train at; None takes that of the images, or the nearest that
            suits.
    """

    family: str = "edm"
    minutes: float = 90.0
    size: int | None = None


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The settings that are fixed before a network is chosen.

    Attributes:
        metadata: of the data set.
        wish: of the user.
        size: height and width of training.
        fit: how images get that size, see `genlab.data.conform.Conform`; None where they have it.
    """

    metadata: SetMetadata
    wish: Wish
    size: int
    fit: str | None

    @property
    def family(self) -> Family:
        """The family that the user wants."""
        return FAMILIES[self.wish.family]

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of training."""
        return self.metadata.image_shape[0], self.size, self.size

    @property
    def data(self) -> DataMetadata:
        """The metadata that networks are built for."""
        names = self.metadata.class_names if self.metadata.has_classes else None
        return DataMetadata(
            num_images=self.metadata.num_images,
            image_shape=self.image_shape,
            num_classes=self.metadata.num_classes if self.metadata.has_classes else 0,
            class_names=names,
        )

    @property
    def few(self) -> bool:
        """Whether there are so few images that the network needs regularisation."""
        return self.metadata.num_images < self.family.few_images

    @property
    def most_kimg(self) -> float:
        """How long the run is at most, however fast the machine is."""
        passes = MOST_PASSES * self.metadata.num_images / 1000
        return max(self.family.least_kimg, passes) if self.few else math.inf

    def kimg_in_time(self, speed: Speed) -> float:
        """Thousands of images that the minutes are enough for."""
        return 60 * self.wish.minutes * TRAINING_SHARE * speed.images_per_second / 1000


def minutes_for(kimg: float, speed: Speed) -> float:
    """How long so many thousand images take, previews and all."""
    return 1000 * kimg / speed.images_per_second / TRAINING_SHARE / 60


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The chosen network.

    Attributes:
        candidate: the network.
        precision: the fastest ``mixed_precision``.
        gain: how much faster than float32 bfloat16 is; None where it was not tried.
        speed: measured; None where nothing was.
        limit: why no larger network was taken; empty where there is none, or none was timed.
    """

    candidate: Candidate
    precision: str = "no"
    gain: float | None = None
    speed: Speed | None = None
    limit: str = ""


def make_plan(data: SetMetadata, wish: Wish) -> Plan:
    """Fix the settings that do not depend on the machine.

    Raises:
        ConfigError: the size or the classes do not suit the family.
        DataError: there are too few images.
    """
    if data.num_images < FEWEST_IMAGES:
        raise DataError(
            f"{data.num_images:,} images are too few to train a network from scratch, which takes "
            f"{FEWEST_IMAGES} at the very least; adapt a trained one, see 'genlab finetune --help'"
        )
    if FAMILIES[wish.family].needs_classes and not data.has_classes:
        have = "have one" if data.num_classes else "have none"
        raise ConfigError(
            f"--family {wish.family} takes images of two classes or more, and those of "
            f"{data.path} {have}; choose --family edm"
        )
    size, fit = choose_size(data, wish)
    return Plan(metadata=data, wish=wish, size=size, fit=fit)


def choose_size(data: SetMetadata, wish: Wish) -> tuple[int, str | None]:
    """Height and width of training, and how images get them (None: they have them).

    Raises:
        ConfigError: none suits.
    """
    sizes = FAMILIES[wish.family].sizes
    _, height, width = data.image_shape
    if wish.size is not None:
        return _wanted_size(data, wish.family, wish.size)
    if height != width:
        raise ConfigError(
            f"the images of {data.path} are {width}x{height} and networks take square ones; say "
            "with --size at which size their centre is cut out, or make them square with 'genlab "
            "data prepare'"
        )
    if height in sizes:
        return height, None
    if fits := [size for size in sizes if height < size <= ENLARGE * height]:
        return fits[0], "pad"
    if height < sizes[0]:
        raise ConfigError(
            f"the images of {data.path} are {width}x{height}, smaller than the {sizes[0]}x"
            f"{sizes[0]} that the networks of --family {wish.family} begin with; take larger images"
        )
    if height > sizes[-1]:
        modest = max(size for size in sizes if size <= 64)
        raise ConfigError(
            f"the images of {data.path} are {width}x{height}, more than the {sizes[-1]}x"
            f"{sizes[-1]} that the networks of --family {wish.family} draw pixel by pixel; choose "
            f"--size {modest} or the like"
        )
    return max(size for size in sizes if size < height), "resize"


def _wanted_size(data: SetMetadata, family: str, size: int) -> tuple[int, str | None]:
    sizes = FAMILIES[family].sizes
    _, height, width = data.image_shape
    shorter = min(height, width)
    if size not in sizes:
        near = min(sizes, key=lambda each: abs(each - size))
        raise ConfigError(
            f"the networks of --family {family} do not draw {size}x{size}; the nearest that they "
            f"draw is --size {near}"
        )
    if size > ENLARGE * shorter:
        raise ConfigError(
            f"--size {size} would enlarge images of {width}x{height}, which brings nothing new; "
            "leave it out, or give a smaller one"
        )
    if size > shorter:
        return size, "pad"
    return size, None if height == width == size else "crop"


def choose_network(plan: Plan, measure: Measure | None, fast: bool) -> Choice:
    """The largest network that the images and the minutes are enough for.

    Args:
        plan: what is settled.
        measure: times candidates; None takes the smallest network without.
        fast: whether bfloat16 may be fast on this machine.

    Raises:
        ConfigError: the minutes, or the memory, do not suffice for the smallest network.
    """
    candidates = plan.family.candidates(plan.size, plan.image_shape[0])
    if measure is None:
        return Choice(candidate=candidates[0])
    choice = _time(plan, candidates[0], measure, fast)
    if choice is None:
        raise ConfigError(
            f"the smallest network of --family {plan.wish.family} does not fit into the memory of "
            f"this machine at {plan.size}x{plan.size}; give a smaller --size"
        )
    _check_minutes(plan, choice)
    for candidate in candidates[1:]:
        limit = _out_of_reach(plan, choice, candidate)
        larger = None if limit else _time(plan, candidate, measure, fast)
        if not limit:
            limit = _too_slow(plan, larger)
        if limit or larger is None:
            return replace(choice, limit=limit)
        choice = larger
    return choice


def _time(plan: Plan, candidate: Candidate, measure: Measure, fast: bool) -> Choice | None:
    """A candidate in its fastest precision; None where memory does not suffice."""
    try:
        speed = measure(candidate, "no")
        if not (fast and plan.family.bfloat16):
            return Choice(candidate=candidate, speed=speed)
        half = measure(candidate, "bf16")
    except RuntimeError as error:
        if is_out_of_memory(error):
            return None
        raise
    gain = half.images_per_second / speed.images_per_second
    taken = gain >= FAST_GAIN
    return Choice(
        candidate=candidate,
        precision="bf16" if taken else "no",
        gain=gain,
        speed=half if taken else speed,
    )


def _check_minutes(plan: Plan, choice: Choice) -> None:
    """Refuse a time too short to train anything."""
    assert choice.speed is not None
    kimg, least = plan.kimg_in_time(choice.speed), plan.family.least_kimg
    if kimg < least:
        needed = math.ceil(minutes_for(least, choice.speed))
        raise ConfigError(
            f"--minutes {plan.wish.minutes:g} are too few: the smallest network of --family "
            f"{plan.wish.family} sees {_count(1000 * kimg)} images of {plan.size}x{plan.size} in "
            f"them on this machine, and before {_count(1000 * least)} its samples show little (a "
            f"rule of thumb); give --minutes {needed}, or a smaller --size"
        )


def _out_of_reach(plan: Plan, choice: Choice, candidate: Candidate) -> str:
    """Why a larger candidate need not be timed: it cannot be faster than the one before it."""
    assert choice.speed is not None
    if plan.metadata.num_images < candidate.least_images:
        return f"the next larger network is for {candidate.least_images:,} images or more"
    if plan.kimg_in_time(choice.speed) < candidate.good_kimg:
        hours = minutes_for(candidate.good_kimg, choice.speed) / 60
        return (
            f"the next larger network is for runs of {candidate.good_kimg:,.0f} kimg, more than "
            f"{hours:,.1f} hours here"
        )
    return ""


def _too_slow(plan: Plan, larger: Choice | None) -> str:
    """Why a larger candidate is not taken now that it was timed; empty where it is."""
    if larger is None or larger.speed is None:
        return "the next larger network does not fit into the memory of this machine"
    needed = larger.candidate.good_kimg
    if plan.kimg_in_time(larger.speed) >= needed:
        return ""
    hours = minutes_for(needed, larger.speed) / 60
    return f"the next larger network is for runs of {needed:,.0f} kimg, {hours:,.1f} hours here"


def _count(number: float) -> str:
    """A number of images to two digits."""
    return f"{float(f'{number:.2g}'):,.0f}"
