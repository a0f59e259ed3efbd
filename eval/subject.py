"""What is evaluated: a model, or images on disk with the metadata of how they were made."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from genlab.checkpoints.bundled import bundled_card, bundled_names, card_header
from genlab.data.conform import Wording
from genlab.data.writing.sample_kinds import IMAGES, LATENTS
from genlab.errors import EvaluationError, reason
from genlab.eval.references.datasets import dataset_name
from genlab.eval.samples import SETTINGS, StoredImages
from genlab.finetuning.adapters.folders import is_adapter
from genlab.generators.base import Generator
from genlab.samplers.base import AnySampler
from genlab.saving.index import INDEX


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What is evaluated.

    Attributes:
        name: how the leaderboard calls it.
        generator: the model, on its device; or None.
        sampler: how it is sampled, made by `Generator.build_sampler`; None is what the evaluation's
            configuration says.
        images: a set of images; or None.
        manifest: what ``genlab sample`` wrote beside the images; empty where it did not.
    """

    name: str
    generator: Generator | None = None
    sampler: AnySampler | None = None
    images: StoredImages | None = None
    manifest: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of_folder(
        cls,
        path: Path,
        name: str | None = None,
        alpha: str = "refuse",
        wording: Wording = SETTINGS,
    ) -> "Subject":
        """Images on disk, with the manifest of the run that made them, if one did.

        Args:
            path: of the images, or of the folder that ``genlab sample`` wrote.
            name: how the leaderboard calls them.
            alpha: what lies behind transparent ones, see `Conform`.
            wording: how messages name the settings.
        """
        manifest = _read_manifest(path)
        images = path / manifest["images"]["path"] if manifest else path
        names = manifest.get("model", {}).get("class_names") if manifest else None
        names = list(map(str, names)) if isinstance(names, list) else None
        stored = StoredImages(images, alpha=alpha, wording=wording, class_names=names)
        config = manifest.get("config", {})
        made = str(config.get("adapter") or config.get("model") or path.resolve().stem)
        return cls(name=name or Path(made).name, images=stored, manifest=manifest)

    @property
    def dataset(self) -> str | None:
        """What the model generates, where its card says so."""
        datasets = card_header(self._card).get("datasets") or []
        return dataset_name(str(datasets[0])) if datasets else None

    @property
    def ema(self) -> str | None:
        """Which average of the weights the model is, where its card says so."""
        for line in self._card.splitlines():
            if line.startswith("| Weights |"):
                return line.removeprefix("| Weights |").strip(" |")
        return None

    @property
    def _card(self) -> str:
        if self.generator is not None:
            return getattr(self.generator, "card", None) or ""
        model = str(self.manifest.get("config", {}).get("model") or "")
        return bundled_card(model) if model in bundled_names() else ""


def _read_manifest(path: Path) -> dict[str, Any]:
    file = path / "manifest.json"
    if not file.is_file():
        return {}
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
        if LATENTS.name in manifest and IMAGES.name not in manifest:
            raise EvaluationError(
                f"{path} holds latents, of which no scores are made; sample the model with the "
                "autoencoder that makes images of them (genlab sample MODEL --autoencoder FOLDER), "
                "or score the model itself with it (genlab eval MODEL --autoencoder FOLDER)"
            )
        _ = manifest["images"]["path"], manifest["identity"], manifest["spent"]
    except EvaluationError:
        raise
    except Exception as error:  # JSON may hold anything in any place, at any depth
        raise EvaluationError(
            f"{file} is not the manifest of a finished run of genlab sample ({reason(error)})"
        ) from error
    assert isinstance(manifest, dict)
    return manifest


def holds_images(path: Path) -> bool:
    """Whether a path is a set of images rather than a model."""
    if path.is_dir():
        return not ((path / INDEX).is_file() or is_adapter(path))
    return path.suffix in (".zip", ".npz") and path.is_file()
