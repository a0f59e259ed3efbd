"""Find out whether an unexpected exception comes from a plug-in or from GenLab itself."""

import traceback
from collections.abc import Iterator
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import FrameType

OWN = "genlab"
"""The package whose faults are bugs of ours, and its distribution."""


def plugin_at_fault(error: Exception) -> str | None:
    """The sentence for an exception that a plug-in of another package raised.

    Frames of other libraries do not count: the nearest frame to the fault that is GenLab's or a
    plug-in's decides. Where it is GenLab's while a plug-in was running, the traceback gets a note.

    Returns:
        None where the fault is GenLab's own.
    """
    plugins = list(_plugins())
    inner_first = list(traceback.walk_tb(error.__traceback__))[::-1]
    packages = {OWN, *map(_top, (entry.module for entry in plugins))}
    ours = [(frame, line) for frame, line in inner_first if _top(_module(frame)) in packages]
    theirs = [(frame, line) for frame, line in ours if _top(_module(frame)) != OWN]
    if not theirs:
        return None
    name = _name([frame for frame, _ in theirs], plugins)
    frame, line = theirs[0]
    place = f"{_file(frame)}, line {line}"
    if theirs[0] != ours[0]:
        error.add_note(f"{name} was running ({place})")
        return None
    message = " ".join(f"{type(error).__name__}: {error}".rstrip(": ").split())
    return f"{name} failed: {message} ({place}); GENLAB_TRACEBACK=1 shows the traceback"


def _plugins() -> Iterator[EntryPoint]:
    """What other packages register with GenLab."""
    points = entry_points()
    for group in sorted(points.groups):
        if _top(group) == OWN:
            yield from (each for each in points.select(group=group) if _top(each.module) != OWN)


def _name(frames: list[FrameType], plugins: list[EntryPoint]) -> str:
    """The plug-in whose module the frames, innermost first, come through; else its package."""
    for frame in frames:
        here = [entry for entry in plugins if entry.module == _module(frame)]
        owner = frame.f_code.co_qualname.partition(".")[0]
        entries = [entry for entry in here if entry.attr == owner] or here
        if len(entries) == 1:
            kind = entries[0].group.rpartition(".")[2].removesuffix("s")
            return f"the {kind} {entries[0].name!r} of the package {_package(entries[0])}"
    top = _top(_module(frames[0]))
    packages = {_package(entry) for entry in plugins if _top(entry.module) == top}
    return f"a plug-in of the package {' or '.join(sorted(packages))}"


def _package(entry: EntryPoint) -> str:
    return entry.dist.name if entry.dist else _top(entry.module)


def _module(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", ""))


def _top(module: str) -> str:
    return module.partition(".")[0]


def _file(frame: FrameType) -> str:
    """The file from its package on: no folders of the machine."""
    path = Path(frame.f_code.co_filename)
    depth = _module(frame).count(".") + 1 + (path.name == "__init__.py")
    return "/".join(path.parts[-depth:])
