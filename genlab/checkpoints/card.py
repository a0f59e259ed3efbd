"""The model card (README.md) of a converted checkpoint: what it is and where it came from."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import genlab
from genlab.checkpoints.readers.base import Product
from genlab.files import content_sha256
from genlab.generators.discriminator import GanDiscriminator
from genlab.generators.noisy_classifier import NoisyClassifier


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where a converted checkpoint came from.

    Attributes:
        file: name of the official file.
        sha256: of that file.
        url: where it was published.
        licence: in words; None where it is not known.
        licence_id: as hubs write it, for instance ``cc-by-nc-sa-4.0``.
        commercial_use: whether the licence allows it; None where that is not known.
        paper: who made it.
        data: what it was trained on.
        scores: published scores with their setting, one line each.
    """

    file: str
    sha256: str
    url: str | None = None
    licence: str | None = None
    licence_id: str | None = None
    commercial_use: bool | None = None
    paper: str | None = None
    data: str | None = None
    scores: Sequence[str] = ()

    @classmethod
    def of(cls, source: Path, licence: str | None = None) -> "Origin":
        """The origin of any file or folder."""
        return cls(file=source.name, sha256=content_sha256(source), licence=licence)


def with_card(
    generator: Product,
    name: str,
    origin: Origin,
    class_names: Sequence[str] | None = None,
    sampler: dict[str, Any] | None = None,
) -> Product:
    """The same model with a card, and perhaps with class names and a sampler of its own.

    Raises:
        LabelError: as many names as there are not classes.
        ConfigError: the sampler does not fit the model.
    """
    metadata: dict[str, Any] = {}
    if class_names:
        metadata["class_names"] = list(class_names)
    if sampler:
        metadata["sampler"] = sampler
    changed = generator.changed(**metadata)
    changed.card = card(changed, name, origin)
    return changed


def card(generator: Product, name: str, origin: Origin) -> str:
    """The text of README.md, with the header that model hubs read."""
    lines = [
        "---",
        "library_name: diffusers",
        f"license: {origin.licence_id or 'other'}",
        *([f"license_name: {json.dumps(origin.licence)}"] if _only_words(origin) else []),
        f"tags: [genlab, {_task(generator)}, {generator.family}]",
        "---",
        "",
        f"# {name}",
        "",
        f"Converted by GenLab {genlab.__version__}; nothing in the official file was executed.",
        "",
        *(f"- {key}: {value}" for key, value in _metadata(generator, origin).items() if value),
        "",
        "```python",
        *_example(generator),
        "```",
        *_for_diffusers(generator),
        "",
    ]
    return "\n".join(lines)


def _only_words(origin: Origin) -> bool:
    return origin.licence is not None and origin.licence_id is None


def _task(model: Product) -> str:
    is_classifier = isinstance(model, NoisyClassifier | GanDiscriminator)
    return "image-classification" if is_classifier else "image-generation"


def _example(model: Product) -> list[str]:
    if isinstance(model, NoisyClassifier):
        return [
            'guidance = [{"name": "classifier", "classifier": "path/to/this/folder", "scale": 1}]',
            'images = generator.sample(range(4), [0] * 4, sampler={"guidance": guidance})',
        ]
    if isinstance(model, GanDiscriminator):
        return [
            "# after: genlab calibrate path/to/this/folder GENERATOR IMAGES",
            'rejection = {"discriminator": "path/to/this/folder"}',
            'images = generator.sample(range(4), [0] * 4, sampler={"rejection": rejection})',
        ]
    labels = ", labels=[0] * 4" if model.num_classes else ""
    return [
        "import genlab",
        "",
        'generator = genlab.load("path/to/this/folder")',
        f"images = generator.sample(seeds=range(4){labels})",
    ]


def _for_diffusers(model: Product) -> list[str]:
    if isinstance(model, NoisyClassifier | GanDiscriminator):
        return []
    return [
        "",
        "After `import genlab`, `DiffusionPipeline.from_pretrained` of diffusers reads it, too.",
    ]


def updated_card(text: str, generator: Product) -> str:
    """The model card of a model after its autoencoder was replaced."""
    lines = text.split("\n")
    places = [
        n for n, line in enumerate(lines) if line.startswith(tuple(map("- {}:".format, _DATA)))
    ]
    if not places:
        return text
    kept = [line for n, line in enumerate(lines) if n not in places]
    entries = [f"- {key}: {value}" for key, value in _data(generator).items() if value]
    return "\n".join([*kept[: places[0]], *entries, *kept[places[0] :]])


_DATA = ("Images", "Latents", "Autoencoder")


def _data(model: Product) -> dict[str, str | None]:
    """What a model works on: the entries `_DATA` of its card."""
    channels, height, width = model.image_shape
    size = f"{height} x {width}, {channels} channels"
    if getattr(model, "draws_latents", False):
        return {"Latents": f"{size}; no autoencoder, which would make images of them"}
    autoencoder = getattr(model, "autoencoder", None)
    if autoencoder is None:
        return {"Images": size}
    kind, digest = type(autoencoder.model).__name__, autoencoder.sha256()
    return {"Images": size, "Autoencoder": f"{kind}, SHA-256 of config and weights `{digest}`"}


def _metadata(generator: Product, origin: Origin) -> dict[str, str | None]:
    parameters = sum(parameter.numel() for parameter in generator.network.parameters())
    metadata = generator.metadata()
    null = "with" if metadata.get("has_null_class") else "no"
    allowed = {True: "allowed", False: "not allowed", None: None}[origin.commercial_use]
    return {
        "Network": f"{type(generator.network).__name__}, {parameters / 1e6:.1f}M parameters",
        **_data(generator),
        "Classes": f"{generator.num_classes or 'none'}"
        + (f" ({null} null class)" if generator.num_classes else ""),
        "Preconditioning": metadata.get("preconditioning", {}).get("name"),
        "Data": origin.data,
        "Source file": f"`{origin.file}`",
        "SHA-256 of the source file": f"`{origin.sha256}`",
        "Published at": origin.url,
        "Made by": origin.paper,
        "Licence": origin.licence or "unknown: ask whoever published the source file",
        "Commercial use": allowed,
        "Published scores": "; ".join(origin.scores),
    }
