"""Recognise files that hold no network (such as optimizer states), and name the right file.

People hand them over by mistake, since training scripts write them into the same folder under
similar names. The message then names the file to give instead.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from genlab.errors import printable

HEAD = 1 << 21
"""Bytes at the beginning of a file: all formats name their tensors there, before the numbers."""


@dataclass(frozen=True)
class _Companion:
    """A kind of file that holds no network, and the file that does.

    Attributes:
        name: how such files are called, a pattern over the whole name.
        marks: text in its head that together tells it whatever it is called; none: only its name.
        description: what it is, as the end of a sentence.
        network_file: the name of the network's file, from the match of ``name``; in words where
            it does not match.
        pattern: which files beside it are networks, for `Path.glob`.
    """

    name: str
    marks: tuple[str, ...]
    description: str
    network_file: Callable[[re.Match[str] | None], str]
    pattern: str


def _snapshot(match: re.Match[str] | None) -> str:
    return f"network-snapshot-{match[1] if match else '*'}.pkl"


_BIGGAN = "G_ema.pth (or G.pth, D.pth)"
_COMPANIONS = (
    _Companion(
        r".*training-state-(\d{1,12})\.pt",
        ("optimizer_state", "torch_utils"),
        "is a training state of EDM, a pickled program with its optimizer",
        _snapshot,
        "network-snapshot-*.pkl",
    ),
    _Companion(
        r"(?:.*_)?state_dict(?:_\w+)?\.pth",
        ("save_best_num", "best_FID"),
        "holds the counters of a BigGAN-PyTorch run and no weights",
        lambda _: _BIGGAN,
        "*G*.pth",
    ),
    _Companion(
        r".*[GD]_optim(?:_\w+)?\.pth",
        (),
        "is the state of an optimizer of BigGAN-PyTorch",
        lambda _: _BIGGAN,
        "*G*.pth",
    ),
    _Companion(
        r"opt(\d{1,12})\.pt",
        (),
        "is the state of an optimizer of guided-diffusion",
        lambda match: f"ema_0.9999_{match[1] if match else '*'}.pt",
        "ema_*.pt",
    ),
    _Companion(
        r".*[._-]?optim(?:izer)?(?:[._-].*)?\.(?:pt|pth|bin|ckpt|pkl)",
        ("param_groups", "params"),
        "is the state of an optimizer",
        lambda _: "the file of the network itself",
        "",
    ),
)
_OPTIMIZER = _COMPANIONS[-1]


def companion_hint(path: Path, content: Any = None) -> str | None:
    """A sentence on a file that holds no network, and which one to take; None for other files.

    Args:
        path: a file that could not be read as a network; its name counts, or what its head holds.
        content: what it holds, where that is known.
    """
    for companion in _COMPANIONS:
        if match := re.fullmatch(companion.name, path.name):
            return _sentence(path, companion, match)
    if isinstance(content, Mapping) and {"state", "param_groups"} <= content.keys():
        return _sentence(path, _OPTIMIZER, None)
    head = _head(path)
    for companion in _COMPANIONS:
        marked = companion.marks and all(mark.encode() in head for mark in companion.marks)
        # A whole training checkpoint has an optimizer, too; alone it names no tensors.
        if marked and not (companion is _OPTIMIZER and b".weight" in head):
            return _sentence(path, companion, None)
    return None


def _sentence(path: Path, companion: _Companion, match: re.Match[str] | None) -> str:
    file, present = companion.network_file(match), _present(path, companion.pattern)
    return f"{path} {companion.description}; give {file} beside it{present}"


def _present(path: Path, pattern: str) -> str:
    """Which of the network files are there."""
    names = sorted(
        file.name
        for file in (path.parent.glob(pattern) if pattern else ())
        if file != path and not any(re.fullmatch(each.name, file.name) for each in _COMPANIONS)
    )
    return f" (there is {printable(', '.join(names[-3:]), 200)})" if names else ""


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(HEAD)
    except OSError:
        return b""


OTHER_PIXELCNNS = (
    "GenLab reads the PixelCNN++ of pclucas14/pixel-cnn-pp and the Gated PixelCNN of "
    "ritheshkumar95/pytorch-vqvae"
)
_PIXELCNN_NAMES = re.compile(
    r"pixel_?cnn|mask(ed)?_?conv|\.mask(_?[ab])?$|causal|vert(ical)?_?(stack|conv)"
    r"|horiz(ontal)?_?(stack|conv)|[vh]_?stack|v_to_h|ul_init|nin_out",
    re.IGNORECASE,
)
_IN_JSON = re.compile(rb'"([^"\\]{1,200})":\{')
_IN_PICKLE = re.compile(rb"(?=X(.)\x00\x00\x00)", re.DOTALL)


def other_repository(path: Path) -> str | None:
    """Why no reader knows a file, where the names of its tensors tell a known kind of network."""
    masked = next((name for name in _names(_head(path)) if _PIXELCNN_NAMES.search(name)), None)
    if masked is None:
        return None
    return (
        f"{path} looks like a PixelCNN of another repository (it holds {printable(masked, 80)}); "
        f"{OTHER_PIXELCNNS}"
    )


def _names(head: bytes) -> Iterator[str]:
    """Short texts in the head of a safetensors file, or of a pickle of protocol 2."""
    if head[8:9] == b"{":
        yield from (match[1].decode(errors="replace") for match in _IN_JSON.finditer(head))
        return
    for match in _IN_PICKLE.finditer(head):
        start = match.start() + 5
        name = head[start : start + match[1][0]]
        if name.isascii():
            yield name.decode()
