"""Pictures to look at: a grid of images with class names, and an animation of how they form."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image, ImageDraw
from PIL.PngImagePlugin import PngInfo

from genlab.data.writing.fonts import Font, pen_for
from genlab.data.writing.writers import Pixels, to_pil
from genlab.files import atomic_path

MIN_TILE = 64
"""Images are enlarged by a whole number until their shorter side has this many pixels."""

ANIMATION_FORMATS = ("gif", "webp")

_GAP = 4
_TEXT = 12
_LINE = 18
_MOST_LINES = 6
_BACKGROUND = (255, 255, 255)
_INK = (32, 32, 32)


def grid(
    images: Sequence[Pixels],
    labels: Sequence[int] | None = None,
    class_names: Sequence[str] | None = None,
    title: str = "",
) -> Image.Image:
    """Lay images out with their classes.

    Where every class has the same number of images (at least two), each class gets its own row or
    rows with its name on the left; otherwise each image has the name of its class below it.

    Args:
        images: all of one shape, (H, W, C).
        labels: one class for each image.
        class_names: where the classes have names; otherwise their numbers stand.
        title: a line above.
    """
    tiles = [_enlarge(to_pil(pixels)) for pixels in images]
    if labels is None:
        return _sheet(tiles, _columns(len(tiles)), title)
    names = [class_names[c] if class_names else f"class {c}" for c in labels]
    classes = sorted(set(labels))
    counts = {list(labels).count(c) for c in classes}
    per_class = counts.pop()
    if counts or per_class < 2 or len(classes) < 2:
        return _sheet(tiles, _columns(len(tiles)), title, below=names)
    order = sorted(range(len(tiles)), key=lambda i: labels[i])  # stable: seeds keep their order
    columns = min(per_class, 16)
    while per_class % columns:
        columns -= 1
    rows = [names[order[i]] for i in range(0, len(order), columns)]
    return _sheet([tiles[i] for i in order], columns, title, left=rows)


def pairs(
    inputs: Sequence[Pixels],
    images: Sequence[Pixels],
    labels: Sequence[int] | None = None,
    class_names: Sequence[str] | None = None,
    title: str = "",
) -> Image.Image:
    """Lay images out, each to the right of what it was made from.

    Args:
        inputs: what each was made from, (H, W, C).
        images: as many, of the same shape.
        labels: one class for each image, whose name stands below it.
        class_names: see `grid`.
        title: a line above.
    """
    tiles = [_enlarge(to_pil(p)) for pair in zip(inputs, images, strict=True) for p in pair]
    below: list[str] = []
    for label in labels or ():
        below += ["", class_names[label] if class_names else f"class {label}"]
    return _sheet(tiles, min(len(tiles), 8), title, below=below)


def rows(
    images: Mapping[str, Sequence[Pixels]], captions: Sequence[str] = (), least: int = MIN_TILE
) -> Image.Image:
    """Lay several sets of images out below each other, a row for each.

    Args:
        images: name of a row -> its images, (H, W, C); sizes may differ between rows.
        captions: stand above the columns; a new line begins where one says so.
        least: images are enlarged until their shorter side has this many pixels.
    """
    sides = [min(pixels[0].shape[:2]) for pixels in images.values()]
    factor = _factor(max(sides), least)  # the same for all: sizes can be compared
    tiles = {n: [_enlarge(to_pil(p), factor) for p in pixels] for n, pixels in images.items()}
    columns = max(map(len, tiles.values()))
    box = tuple(max(max(t.size[axis] for t in row) for row in tiles.values()) for axis in (0, 1))
    blank = Image.new("RGB", (box[0], box[1]), _BACKGROUND)
    sheet = []
    for row in tiles.values():
        sheet += [_centred(tile, blank) for tile in row] + [blank] * (columns - len(row))
    return _sheet(sheet, columns, "", left=list(tiles), above=captions)


def _centred(tile: Image.Image, blank: Image.Image) -> Image.Image:
    page = blank.copy()
    page.paste(tile, ((blank.width - tile.width) // 2, (blank.height - tile.height) // 2))
    return page


def _columns(count: int) -> int:
    """About as wide as high, and no ragged last row where a near-square divisor exists."""
    root = max(1, round(count**0.5))
    near = range(root, min(2 * root, count) + 1)
    return next((columns for columns in near if count % columns == 0), root)


def _factor(side: int, least: int = MIN_TILE) -> int:
    return max(1, -(-least // side))


def _enlarge(image: Image.Image, factor: int | None = None) -> Image.Image:
    factor = factor or _factor(min(image.size))
    size = (image.width * factor, image.height * factor)
    return image.convert("RGB").resize(size, Image.Resampling.NEAREST)


def _sheet(
    tiles: Sequence[Image.Image],
    columns: int,
    title: str,
    left: Sequence[str] = (),
    below: Sequence[str] = (),
    above: Sequence[str] = (),
) -> Image.Image:
    """Draw tiles in rows: a title on top, names left of rows, above columns or below tiles.

    What is wider than its place goes on in the next line, over a few lines.
    """
    pen = pen_for([title, *left, *below, *above], _TEXT)
    font, left = pen.font, [pen.spell(name) for name in left]
    width, height = tiles[0].size
    margin = 2 * _GAP + max((int(font.getlength(name)) for name in left), default=-_GAP)
    page_width = margin + columns * (width + _GAP)
    titles = _wrap(pen.spell(title), page_width - 2 * _GAP, font)
    heads = [_wrap(pen.spell(name), width, font) for name in above]
    footers = [_wrap(pen.spell(name), width, font) for name in below]
    head = _LINE * max(map(len, heads), default=0)
    foot = _LINE * max(map(len, footers), default=0)
    top = (_LINE * len(titles) + 2 * _GAP if titles else _GAP) + head
    pitch = (width + _GAP, height + _GAP + foot)
    page = Image.new("RGB", (page_width, top + -(-len(tiles) // columns) * pitch[1]), _BACKGROUND)
    draw = ImageDraw.Draw(page)
    for line, text in enumerate(titles):
        draw.text((_GAP, _GAP + line * _LINE), text, _INK, font)
    for row, name in enumerate(left):
        draw.text((_GAP, top + row * pitch[1] + height // 2), name, _INK, font, anchor="lm")
    for column, lines in enumerate(heads):
        x = margin + column * pitch[0] + width // 2
        _centre(draw, lines, x, top - _LINE * len(lines), font)
    for i, tile in enumerate(tiles):
        x, y = margin + i % columns * pitch[0], top + i // columns * pitch[1]
        page.paste(tile, (x, y))
        if footers:
            _centre(draw, footers[i], x + width // 2, y + height, font)
    return page


def _centre(draw: ImageDraw.ImageDraw, lines: Sequence[str], x: int, y: int, font: Font) -> None:
    """Write lines below each other, the first from ``y`` on."""
    for line, text in enumerate(lines):
        draw.text((x, y + line * _LINE + _LINE // 2), text, _INK, font, anchor="mm")


def _wrap(text: str, width: int, font: Font) -> list[str]:
    """Break a text into lines that fit: between words, and within one that is too long itself."""
    paragraphs = [_broken(paragraph, width, font) for paragraph in text.split("\n")]
    lines = [line for paragraph in paragraphs for line in paragraph]
    if len(lines) > _MOST_LINES:
        lines = [*lines[: _MOST_LINES - 1], f"{lines[_MOST_LINES - 1][:-3]}..."]
    return lines


def _broken(text: str, width: int, font: Font) -> list[str]:
    lines: list[str] = []
    for word in text.split():
        if lines and font.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
            continue
        rest = word
        while font.getlength(rest) > width and len(rest) > 1:
            fitting = (n for n in range(len(rest) - 1, 1, -1) if font.getlength(rest[:n]) <= width)
            size = next(fitting, 1)
            lines.append(rest[:size])
            rest = rest[size:]
        lines.append(rest)
    return lines


def write_grid(path: Path, picture: Image.Image, marks: Mapping[str, str] | None = None) -> None:
    """Write a picture as PNG, whole or not at all.

    Args:
        path: the file.
        picture: what it shows.
        marks: its metadata, as text by keyword (``Description``); None leaves them out.
    """
    metadata = PngInfo()
    for keyword, text in (marks or {}).items():
        metadata.add_text(keyword, text)
    with atomic_path(path) as temporary:
        picture.save(temporary, format="png", pnginfo=metadata)


def animation_frame(images: Sequence[Pixels], title: str = "") -> Image.Image:
    """One frame of an animation: the images side by side in a near-square grid."""
    tiles = [_enlarge(to_pil(pixels)) for pixels in images]
    return _sheet(tiles, _columns(len(tiles)), title)


def write_animation(path: Path, frames: Sequence[Image.Image], seconds: float = 3.0) -> None:
    """Write an endless animation as GIF or WebP (by the ending of ``path``), whole or not at all.

    Args:
        path: ends in one of `ANIMATION_FORMATS`.
        frames: the pictures, all of one width; the higher ones have more lines of text above.
        seconds: how long they take together; the last frame then stands for another 2 seconds.
    """
    height = max(frame.height for frame in frames)
    frames = [_lowered(frame, height) for frame in frames]
    step = max(20, round(1000 * seconds / len(frames)))  # browsers slow frames below 20 ms down
    durations = [step] * (len(frames) - 1) + [2000]
    with atomic_path(path) as temporary:
        frames[0].save(
            temporary,
            format=path.suffix.removeprefix("."),
            save_all=True,
            append_images=list(frames[1:]),
            duration=durations,
            loop=0,
            **({"lossless": True} if path.suffix == ".webp" else {}),
        )


def _lowered(picture: Image.Image, height: int) -> Image.Image:
    """The picture at the foot of a page of this height."""
    page = Image.new("RGB", (picture.width, height), _BACKGROUND)
    page.paste(picture, (0, height - picture.height))
    return page
