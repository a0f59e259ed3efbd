"""GenLab: class-conditional image generators behind one interface.

``import genlab`` is light on purpose (no torch): the public names below are looked up on first use,
so that ``genlab --help`` answers at once.
"""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genlab.lazy import attach

_package = Path(__file__).resolve().parent
if not (_package / "samplers").exists() and (_package.parent / "samplers").is_dir():
    # A checkout: samplers/, eval/ and configs/ lie beside this folder; a wheel has them inside it.
    __path__.append(str(_package.parent))

try:
    __version__ = version("genlab")
except PackageNotFoundError:  # a checkout on the path, never installed
    __version__ = "0+unknown"

if TYPE_CHECKING:
    from genlab.checkpoints import convert
    from genlab.finetuning.adapters.loading import load
    from genlab.generators import (
        AutoregressiveGenerator,
        Batch,
        DiffusionGenerator,
        GanGenerator,
        Generator,
    )
    from genlab.pipelines import GenLabPipeline

_HOMES = {
    "AutoregressiveGenerator": "genlab.generators",
    "Batch": "genlab.generators",
    "DiffusionGenerator": "genlab.generators",
    "GanGenerator": "genlab.generators",
    "GenLabPipeline": "genlab.pipelines",
    "Generator": "genlab.generators",
    "convert": "genlab.checkpoints",
    "load": "genlab.finetuning.adapters.loading",
}
__all__ = [
    "AutoregressiveGenerator",
    "Batch",
    "DiffusionGenerator",
    "GanGenerator",
    "GenLabPipeline",
    "Generator",
    "__version__",
    "convert",
    "load",
]


def _model_of_a_run(source: str) -> Any:
    # With an @, too: owner/name@revision of the hub.
    if import_module("genlab.checkpoints.hub.fetch").locate(source) != source:
        return import_module("genlab.checkpoints.loading").load(source)
    return import_module("genlab.training.named").load_from_run(source)


def _is_adapter(source: str) -> bool:
    return import_module("genlab.finetuning.adapters.folders").find_adapter(source) is not None


def _model_with_adapter(source: str) -> Any:
    folder = import_module("genlab.finetuning.adapters.folders").find_adapter(source)
    if folder is None:
        return None
    return import_module("genlab.finetuning.adapters.loading").load_adapter(folder)


def _adapter_names() -> list[str]:
    return list(import_module("genlab.finetuning.adapters.folders").kept_adapters())


# Told from here, above all rooms, since a sampler cannot know of training, nor a reader of files of
# fine-tuning; and by name, since every room imports this module.
import_module("genlab.samplers.parts").loads_from_runs("generator")(_model_of_a_run)
_beside = import_module("genlab.checkpoints.beside")
_beside.register(
    "adapter",
    _beside.Beside(finds=_is_adapter, read=_model_with_adapter, names=_adapter_names),
)
import_module("genlab.diffusers_import").show_pipeline()
import_module("genlab.moved").keep_old_names()

__getattr__, __dir__ = attach(__name__, _HOMES)
