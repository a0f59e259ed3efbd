"""Save a GAN with new classes: an ordinary model folder, its card, and a record of the search."""

import json
import re
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL.Image import Image

from genlab import __version__
from genlab.config import to_yaml
from genlab.data.pixels import to_uint8
from genlab.data.writing import pictures
from genlab.data.writing.writers import Pixels
from genlab.errors import OutputError
from genlab.files import write_text
from genlab.finetuning.gan.retarget import Retargeted, draw_vectors
from genlab.finetuning.gan.search import FoundClass, RetargetConfig
from genlab.generators.gan import GanGenerator
from genlab.samplers.base import SamplerLike

PICTURE = "before-after.png"
RECORD = "retarget.json"


@dataclass(frozen=True, kw_only=True)
class Named:
    """A model with its name and hash.

    Attributes:
        name: as it was given.
        sha256: of its weights; None where it is not known.
    """

    name: str
    sha256: str | None


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """The verdict on a class by a classifier that took no part in the search.

    Attributes:
        before: share of the start's images, 0 to 1, that it takes for the class.
        after: the same of the images of the vector that was found.
    """

    before: float
    after: float


@dataclass(frozen=True, kw_only=True)
class RetargetRecord:
    """A record of how a generator got its classes.

    Attributes:
        base: the generator that it was made of.
        classifier: that the class vectors were moved by.
        config: how they were moved.
        sampler: how latents were drawn, as the generator's configuration says it.
        classes: of the new model, in their order.
        kept: whether the classes of the base are among them.
        seconds: that the search took.
        found: the classes that were looked for.
        judge: another classifier that judged the images, or None.
        judgements: what that one says, by names of the classes.
        licence: of the base, as its card says it; None where it says nothing.
    """

    base: Named
    classifier: Named
    config: RetargetConfig
    sampler: dict[str, Any]
    classes: tuple[str, ...]
    kept: bool
    seconds: float
    found: tuple[FoundClass, ...]
    judge: Named | None = None
    judgements: dict[str, Judgement]
    licence: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain values; class vectors are left to the weights."""
        return {
            "base": asdict(self.base),
            "classifier": asdict(self.classifier),
            "judge": None if self.judge is None else asdict(self.judge),
            "kept": self.kept,
            "class_names": list(self.classes),
            "seconds": round(self.seconds, 3),
            "classes": [self._class_json(each) for each in self.found],
            "settings": {**asdict(self.config), "sampler": self.sampler},
            "genlab": __version__,
        }

    def _class_json(self, each: FoundClass) -> dict[str, Any]:
        judgement = self.judgements.get(each.name)
        return {
            "name": each.name,
            "target": each.target,
            "began": each.began,
            "probability_before": each.probability_before,
            "probability": each.probability,
            "judged": None if judgement is None else asdict(judgement),
        }

    def lines(self) -> list[str]:
        """A line for each class, as a command prints them."""
        lines = []
        for each in self.found:
            line = each.describe()
            if self.judge is not None:
                judgement = self.judgements[each.name]
                line += (
                    f"; {self.judge.name} takes {judgement.before:.1%} of them for it before and "
                    f"{judgement.after:.1%} after"
                )
            lines.append(line)
        return lines

    def card(self, name: str) -> str:
        """The model card, README.md.

        Args:
            name: of the model.
        """
        rows = {
            "Family": GanGenerator.family,
            "Base": _with_hash(self.base),
            "Classes": f"{len(self.classes)}: {', '.join(self.classes)}",
            "Moved by": _with_hash(self.classifier),
            "Time": f"{self.seconds:,.0f} s",
            "Licence": self.licence or "that of the base",
        }
        table = "\n".join(f"| {key} | {value} |" for key, value in rows.items())
        settings = to_yaml({**asdict(self.config), "sampler": self.sampler})
        warning = (
            f"The vectors were moved until {self.classifier.name} was satisfied, and a classifier "
            "can be fooled: judge the images by another one, or by eye."
        )
        licence = json.dumps((self.licence or "other").lower())
        return f"""---
license: {licence}
library_name: genlab
tags: [image-generation, gan]
---
# {name}

| | |
|---|---|
{table}

Made with GenLab {__version__}: of each new class one vector was moved by a classifier, without any
image of it; all other weights are those of the base. To draw samples:

```
genlab sample {name}/ --seeds 0-63 -o samples/
```

## Classes

{self._class_table()}

{warning}

![Before and after]({PICTURE})

## Settings

```yaml
{settings}```
"""

    def _class_table(self) -> str:
        """What both classifiers say, in Markdown."""
        head = ["class", "began at", "probability before", "after"]
        if self.judge is not None:
            head += [f"taken for it by {self.judge.name} before", "after"]
        lines = [head, ["---"] * len(head)]
        for each in self.found:
            shares = [each.probability_before, each.probability]
            if self.judge is not None:
                judgement = self.judgements[each.name]
                shares += [judgement.before, judgement.after]
            lines.append([each.name, each.began, *(f"{share:.1%}" for share in shares)])
        return "\n".join(
            f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines
        )


def licence_of(card: str | None) -> str | None:
    r"""The licence that a model card names in its header; None where it names none.

    >>> licence_of("---\nlicense: mit\n---\n# a model")
    'mit'
    """
    header = re.match(r"---\n(.*?\n)---\n", card or "", re.DOTALL)
    line = re.search(r"^license:[ \t]*(.+)$", header[1], re.MULTILINE) if header else None
    return line[1].strip().strip("\"'") if line else None


def _with_hash(model: Named) -> str:
    return model.name if model.sha256 is None else f"{model.name}, SHA-256 {model.sha256}"


def before_after(
    generator: GanGenerator,
    classes: Sequence[FoundClass],
    seeds: Sequence[int] = range(8),
    sampler: SamplerLike = None,
) -> Image:
    """Images of each class's start, and below them those of the vector that was found.

    Args:
        generator: the base.
        classes: the classes.
        seeds: of the columns.
        sampler: None is the generator's own way.
    """
    rows: dict[str, Sequence[Pixels]] = {}
    for each in classes:
        pair = draw_vectors(generator, [each.start, each.vector], seeds, sampler)
        pixels = list(to_uint8(pair.cpu()).permute(0, 2, 3, 1).numpy())
        rows[f"{each.name}: {each.began}, before"] = pixels[: len(seeds)]
        rows[f"{each.name}: after"] = pixels[len(seeds) :]
    return pictures.rows(rows)


def save_retargeted(
    result: Retargeted, record: RetargetRecord, picture: Image, folder: Path
) -> None:
    """Write the folder of a new model, whole or not at all.

    Args:
        result: the generator; it gets its card.
        record: how it came by its classes.
        picture: what `before_after` drew.
        folder: a new or an empty one.

    Raises:
        OutputError: the folder holds something, cannot be written, or the disk is full.
    """
    result.generator.card = record.card(folder.resolve().name)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as name:
            new = Path(name) / "new"
            result.generator.save_pretrained(new)
            pictures.write_grid(new / PICTURE, picture)
            text = json.dumps(record.to_json(), indent=2, ensure_ascii=False)
            write_text(new / RECORD, text + "\n")
            if folder.is_dir():
                folder.rmdir()
            new.rename(folder)
    except OutputError:
        raise
    except OSError as error:
        raise OutputError(f"cannot write {folder}: {error.strerror or error}") from error
