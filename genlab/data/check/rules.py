"""Rules from the statistics of a data set to findings: one sentence each, with the cure."""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from jaxtyping import Int64

from genlab.data.check.jpeg_traces import looks_like_jpeg
from genlab.data.check.tally import Tally
from genlab.data.conform import Conform
from genlab.data.sources.base import Finding, ImageSource, some

FEW_IMAGES = 1000
FEW_IN_CLASS = 10
UNEVEN = 10
HALVINGS = 8
"""U-Nets halve the image three times or so."""

GREY_MODES = {"1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L", "I;16N", "LA;16"}


def judge(source: ImageSource, tally: Tally, conform: Conform) -> Iterator[Finding]:
    """All findings about a source that could be opened.

    Args:
        source: the images and labels.
        tally: what the images are like.
        conform: how training is to make them alike; what it settles is no error.
    """
    yield from _broken(source, tally)
    if not tally.sizes:
        return
    yield from _sizes(tally, conform)
    yield from _channels(tally, conform)
    yield from _transparency(tally, conform)
    yield from _labels(source)
    yield from _duplicates(source, tally)
    yield from _compression(tally)
    yield from _oddities(tally)
    if len(source) < FEW_IMAGES:
        yield Finding.note(
            "few-images",
            f"{len(source):,} images are few: a network trained from scratch learns them by heart; "
            "adapt a trained one instead, see 'genlab finetune --help'",
        )


def _broken(source: ImageSource, tally: Tally) -> Iterable[Finding]:
    if not tally.broken:
        return
    name, reason = next(iter(tally.broken.items()))
    reason = reason.removeprefix(f"{source.path}: {name} ")
    yield Finding.error(
        "broken",
        f"{len(tally.broken):,} of {len(source):,} images cannot be read: {some(tally.broken)} "
        f"(the first {reason.partition(';')[0]}); replace them, or leave them out with 'genlab "
        "data prepare --skip-broken'",
    )


def _size_text(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


def _sizes(tally: Tally, conform: Conform) -> Iterable[Finding]:
    listed = [f"{_size_text(size)} ({count:,})" for size, count in tally.sizes.most_common()]
    side = conform.image_size
    if conform.fit != "none":
        if len(tally.sizes) > 1:
            yield Finding.note(
                "mixed-sizes",
                f"{len(listed)} sizes are made one by fit={conform.fit}: {some(listed)}",
            )
        return
    if len(tally.sizes) > 1:
        rare = tally.examples[tally.sizes.most_common()[-1][0]]
        yield Finding.error(
            "mixed-sizes",
            f"the images have {len(listed)} sizes: {some(listed)}, for instance {rare}; choose one "
            "with --size and --fit, or pack them with 'genlab data prepare'",
        )
        return
    width, height = size = next(iter(tally.sizes))
    if side is not None and size != (side, side):
        yield Finding.error(
            "wrong-size",
            f"the images are {_size_text(size)}, not {side}x{side}; add --fit pad, resize or crop",
        )
    elif width != height:
        yield Finding.error(
            "not-square",
            f"the images are {_size_text(size)} and models take squares; choose --size and --fit "
            "crop, pad or resize",
        )
    elif width % HALVINGS:
        up = width + -width % HALVINGS
        yield Finding.warning(
            "odd-size",
            f"{_size_text(size)} cannot be halved three times, as most U-Nets do; pad to {up} with "
            f"--size {up} --fit pad",
        )


def _channels(tally: Tally, conform: Conform) -> Iterable[Finding]:
    grey = sum(tally.modes[mode] for mode in GREY_MODES)
    colour = sum(tally.modes.values()) - grey
    if grey and colour:
        text = f"{grey:,} images are grey and {colour:,} RGB"
        if conform.channels is None:
            fewer = [mode for mode in tally.modes if (mode in GREY_MODES) == (grey <= colour)]
            odd = min(fewer, key=lambda mode: tally.modes[mode])
            yield Finding.error(
                "mixed-channels",
                f"{text} (for instance {tally.examples[odd]}); choose --channels 3 or 1",
            )
        else:
            yield Finding.note("mixed-channels", f"{text}; all are made {conform.channels}-channel")
    elif colour and not tally.traits["coloured"] and conform.channels != 1:
        yield Finding.warning(
            "grey-as-rgb",
            "all images are grey though stored as RGB; a third of the work is enough with "
            "--channels 1",
        )
    if tally.modes["P"]:
        yield Finding.note(
            "palette",
            f"{tally.modes['P']:,} images have a palette of at most 256 colours "
            f"({tally.examples['P']}); they are read as RGB, use the originals if they had more",
        )


def _transparency(tally: Tally, conform: Conform) -> Iterable[Finding]:
    count = tally.traits["transparent"]
    if count and conform.alpha == "refuse":
        yield Finding.error(
            "transparent",
            f"{count:,} images are partly transparent ({tally.examples['transparent']}); say what "
            "lies behind them with --alpha white or black",
        )
    elif count:
        yield Finding.note("transparent", f"{count:,} images are laid on {conform.alpha}")
    opaque = tally.traits["opaque"]
    if opaque:
        yield Finding.note(
            "opaque-alpha",
            f"{opaque:,} images have an alpha channel that is opaque ({tally.examples['opaque']}); "
            "it is dropped",
        )


def _labels(source: ImageSource) -> Iterable[Finding]:
    if source.labels is None:
        yield Finding.warning(
            "no-labels",
            "the images have no labels, so only an unconditional model can be trained; for classes "
            "sort them into one folder each, or add a dataset.json",
        )
        return
    counts = np.bincount(source.labels, minlength=source.num_classes)
    names = source.class_names or [f"class {i}" for i in range(len(counts))]
    if (counts > 0).sum() == 1:
        yield Finding.warning(
            "one-label",
            f"all images have one label ({names[int(counts.argmax())]}), so there is nothing to be "
            "conditional on; train without classes, or check the labels",
        )
        return
    yield from empty_classes(counts, source.class_names)
    tiny = np.flatnonzero((counts > 0) & (counts < FEW_IN_CLASS))
    few = [f"{names[i]} ({counts[i]})" for i in tiny]
    if few:
        yield Finding.warning(
            "tiny-class",
            f"{len(few):,} classes have fewer than {FEW_IN_CLASS} images: {some(few)}; add images "
            "or merge classes",
        )
    least = counts[counts > 0].min()
    if not few and counts.max() > UNEVEN * least:
        yield Finding.note(
            "uneven-classes",
            f"the largest class ({names[int(counts.argmax())]}, {counts.max():,}) has more than "
            f"{UNEVEN} times the images of the smallest ({least:,})",
        )


def empty_classes(
    counts: Int64[np.ndarray, " classes"], class_names: Sequence[str] | None
) -> Iterable[Finding]:
    """Say which classes a model would have without having seen an image of them.

    Args:
        counts: images of each class.
        class_names: or None where the classes have none.
    """
    empty = np.flatnonzero(counts == 0).tolist()
    if empty:
        names = [class_names[i] if class_names else f"class {i}" for i in empty]
        yield Finding.warning(
            "empty-class",
            f"{len(empty):,} of {len(counts):,} labels have no image: {some(names)}; number the "
            "classes 0, 1, 2, ... without gaps, or add the images",
        )


def _duplicates(source: ImageSource, tally: Tally) -> Iterable[Finding]:
    if not tally.groups:
        return
    extra = sum(len(group) - 1 for group in tally.groups)
    pairs = [f"{source.name(g[0])} = {source.name(g[1])}" for g in tally.groups]
    yield Finding.warning(
        "duplicates",
        f"{extra:,} images repeat others pixel by pixel: {some(pairs)}; remove the copies",
    )
    if source.labels is None:
        return
    clash = [g for g in tally.groups if len(set(source.labels[g].tolist())) > 1]
    if clash:
        pairs = [f"{source.name(g[0])} = {source.name(g[-1])}" for g in clash]
        yield Finding.warning(
            "label-clash",
            f"{len(clash):,} equal images have different labels: {some(pairs)}; keep the right one",
        )


def _compression(tally: Tally) -> Iterable[Finding]:
    count = tally.traits["lossy"]
    if count:
        yield Finding.warning(
            "lossy",
            f"{count:,} files are compressed with loss ({tally.examples['lossy']}): a model learns "
            "the artefacts, and scores do not compare with those on the originals; use lossless "
            "files if there are any",
        )
    if looks_like_jpeg(tally.sample):
        yield Finding.warning(
            "jpeg-traces",
            "the files are lossless but the pixels bear the marks of JPEG's 8x8 blocks: they were "
            "JPEG before; use the originals if there are any",
        )


def _oddities(tally: Tally) -> Iterable[Finding]:
    if tally.traits["blank"]:
        yield Finding.warning(
            "blank",
            f"{tally.traits['blank']:,} images are of one colour ({tally.examples['blank']}); "
            "remove them if they show nothing",
        )
    if tally.traits["animated"]:
        yield Finding.warning(
            "animated",
            f"{tally.traits['animated']:,} files hold several frames "
            f"({tally.examples['animated']}); only the first is used",
        )
    if tally.traits["deep"]:
        yield Finding.note(
            "deep",
            f"{tally.traits['deep']:,} files have 16 bits a channel ({tally.examples['deep']}); "
            "they are rounded to 8",
        )
    if tally.traits["turned"]:
        yield Finding.note(
            "turned",
            f"{tally.traits['turned']:,} files ask to be turned (EXIF; {tally.examples['turned']}) "
            "and are read upright; other programs may read them otherwise, 'genlab data prepare' "
            "settles it",
        )
