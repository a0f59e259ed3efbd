"""Check pickles for nested tuples that would take torch's reader all time or stack.

``torch.load`` runs nothing of a file that it reads with ``weights_only``, but it builds what the
file says. Tuples that hold one tuple twice, which holds another twice and so on, take a line each
and are hashed by unfolding all of them; a deep nest takes the stack that hashing recurses on. Both
are seen beforehand, from what each instruction takes from the stack and puts there.
"""

import zipfile
from io import BytesIO
from pathlib import Path
from pickletools import OpcodeInfo, genops, markobject, stackslice
from typing import IO, Any, cast

from genlab.checkpoints.pickles.machine import MAX_DEPTH, MAX_WORK, RefusedError, Stream

MOST_INSTRUCTIONS = 10 * MAX_WORK
"""Of one file; a training state with long lists of numbers takes a fraction."""
MOST_PARTS = 100_000
"""Values that one value may unfold to; tuples of network files hold a few numbers."""
LEGACY_PICKLES = 5
"""One after the other in a file of torch before 1.6: magic, version, system, content, keys."""

_Size = tuple[int, int]
_PLAIN: _Size = (1, 0)  # parts, depth
_STORES = ("PUT", "BINPUT", "LONG_BINPUT")
_FETCHES = ("GET", "BINGET", "LONG_BINGET")
_FILLS = ("APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS", "BUILD")


def check_tuples(path: Path) -> None:
    """Look at a file that ``torch.save`` wrote; what is no pickle at all is left to torch.

    Raises:
        RefusedError: a value nests too deep, unfolds to too much, or the file has too many
            instructions; the caller puts the file's name in front.
    """
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                if name.endswith(".pkl"):
                    _check(BytesIO(archive.read(name)), pickles=1)
        return
    with path.open("rb") as file:
        _check(file, LEGACY_PICKLES)


def _check(stream: Stream, pickles: int) -> None:
    left = MOST_INSTRUCTIONS
    for _ in range(pickles):
        walk = _Walk()
        try:
            for opcode, argument, _ in genops(cast(IO[bytes], stream)):
                left -= 1
                if left < 0:
                    raise RefusedError("takes more work than any network file")
                walk.step(opcode, argument)
        except RefusedError:
            raise
        except Exception:  # malformed from here on: torch comes as far and refuses it
            return


class _Walk:
    """The sizes of what lies on the stack, instruction by instruction."""

    def __init__(self) -> None:
        self._stack: list[_Size | None] = []  # None is a mark
        self._memo: dict[int, _Size] = {}

    def step(self, opcode: OpcodeInfo, argument: Any) -> None:
        name = opcode.name
        if name in _STORES:
            self._memo[int(argument)] = self._top()
        elif name == "MEMOIZE":
            self._memo[len(self._memo)] = self._top()
        elif name in _FETCHES:
            self._stack.append(self._memo[int(argument)])
        elif name == "DUP":
            self._stack.append(self._top())
        elif name == "MARK":
            self._stack.append(None)
        else:
            self._run(opcode)

    def _top(self) -> _Size:
        return self._stack[-1] or _PLAIN

    def _run(self, opcode: OpcodeInfo) -> None:
        before = opcode.stack_before
        taken: list[_Size] = []
        if stackslice in before or markobject in before:
            while (size := self._stack.pop()) is not None:
                taken.append(size)
            fixed = before.index(markobject)
        else:
            fixed = len(before)
        taken += [self._stack.pop() or _PLAIN for _ in range(fixed)]
        for _ in opcode.stack_after:
            # A container keeps what it is filled with out of sight: it cannot be hashed.
            self._stack.append(taken[-1] if opcode.name in _FILLS else _around(taken))


def _around(parts: list[_Size]) -> _Size:
    """The unfolded size of a value that is made of others."""
    size = (
        1 + sum(count for count, _ in parts),
        max((depth for _, depth in parts), default=-1) + 1,
    )
    if size[1] > MAX_DEPTH:
        raise RefusedError(f"nests deeper than {MAX_DEPTH}, as if made to exhaust")
    if size[0] > MOST_PARTS and len(parts) < size[0] - 1:
        raise RefusedError("holds a value that unfolds to far more than it is, as if to exhaust")
    return size
