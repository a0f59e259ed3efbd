"""Find the folder that a model's name means, without torch, so that a typo answers at once."""

from pathlib import Path

from genlab.checkpoints import beside
from genlab.checkpoints.bundled import bundled_folder, bundled_names
from genlab.checkpoints.hub.fetch import locate
from genlab.checkpoints.zoo.catalogue import entries, pulled_folder
from genlab.errors import CheckpointError, GenLabError, UnknownNameError, nearest
from genlab.files import read_json_object
from genlab.saving.index import INDEX, PIPELINE


def find_folder(name: str) -> Path | None:
    """The folder that ``save_pretrained`` wrote, of a name or path that `genlab.load` takes.

    A model of the hub is fetched where no copy of it is here.

    Returns:
        None where the name means an adapter, an official file or another program's folder.

    Raises:
        UnknownNameError: there is neither a model nor a file of this name.
        CheckpointError: there is no such path, nor such a repository of the hub; the zoo's model
            has not been fetched yet; or the folder's index cannot be read.
    """
    if name in bundled_names():
        return bundled_folder(name)
    pulled = pulled_folder(name) if name in entries() else None
    if pulled is not None:
        return pulled
    name = locate(name)
    path = Path(name)
    if beside.finds(name):
        return None
    if path.is_dir():
        return path if _is_ours(path) else None
    if path.exists():
        return None
    if name not in entries() and (path.suffix or name != path.name):
        raise CheckpointError(f"there is no file or folder {path}; check the path")
    raise _not_here(name)


def _is_ours(folder: Path) -> bool:
    path = folder / INDEX
    return path.is_file() and read_json_object(path).get("_class_name") == PIPELINE


def _not_here(name: str) -> GenLabError:
    zoo = entries()
    if name in zoo:
        return CheckpointError(
            f"the zoo's model {name} is not on this machine yet; fetch it with "
            f"'genlab zoo pull {name}' (licence {zoo[name].licence})"
        )
    return UnknownNameError(
        f"there is no model {name!r}; {nearest(name, [*bundled_names(), *zoo, *beside.names()])}"
    )
