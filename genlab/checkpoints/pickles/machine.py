"""A restricted pickle machine: it builds plain values and executes nothing.

Python's own unpickler looks up whatever a file names and calls it, which is how a network file
becomes a program. Here `pickletools` only takes the file apart, and a name in it selects an entry
of a short table (`genlab.checkpoints.pickles.records`) that makes an inert record; a name outside
the table ends the reading with that name in the message. Length claims are checked against the
bytes that are there, and the work is counted, so a forged file can neither fill the memory nor keep
the machine busy.
"""

from collections.abc import Callable, Iterable, Mapping
from pickletools import genops
from typing import IO, Any, NoReturn, Protocol, cast, runtime_checkable

from genlab.errors import CheckpointError

MAX_WORK = 1_000_000
"""Instructions that one file may cost, nested pickles included; official files need a tenth."""
MAX_STACK = 10_000
MAX_BITS = 128
MAX_DEPTH = 200
"""How deep values may nest; the modules of an official network nest about 20 deep."""


class RefusedError(CheckpointError):
    """Why a pickle is not read; the reader puts the file's name in front."""


class Budget:
    """Limits on the work and memory of reading one file."""

    def __init__(self) -> None:
        self.left = MAX_WORK

    def spend(self, work: int = 1) -> None:
        """Count instructions or copied elements.

        Raises:
            RefusedError: the file costs more than any network file.
        """
        self.left -= work
        if self.left < 0:
            self.refuse()

    def refuse(self) -> NoReturn:
        """End the reading."""
        raise RefusedError("takes more work than any network file, as if made to exhaust")


@runtime_checkable
class Stream(Protocol):
    """A file whose ``read`` never gives (or reserves) more than is left: an mmap or a BytesIO."""

    def read(self, n: int = ..., /) -> bytes:
        """Up to ``n`` bytes."""
        ...

    def readline(self) -> bytes:
        """Up to the next line break."""
        ...


class Name:
    """A name that stands in the file: never the thing itself."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name


class Record:
    """Something that the file describes by a name and a state."""

    def set_state(self, state: Any) -> None:
        """Take the state that pickle's BUILD instruction gives."""
        raise RefusedError(f"gives a state to a {type(self).__name__}, which has none")

    def parts(self) -> Iterable[Any]:
        """The values inside, which `check_nesting` looks at."""
        return ()


Maker = Callable[["PickleMachine", tuple[Any, ...]], Any]

_MARK = object()
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_EMPTY: dict[str, Callable[[], Any]] = {"EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_SET": set}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_IGNORED = {"PROTO", "FRAME", "STOP"}


class PickleMachine:
    """Reads one pickle.

    Args:
        stream: where to read; it stands behind the pickle afterwards.
        names: what each allowed name builds from its arguments; None marks a name that is only a
            value.
        budget: shared between a file and the pickles nested in it.
        persistent: resolves persistent ids where the format has them.
    """

    def __init__(
        self,
        stream: Stream,
        names: Mapping[str, Maker | None],
        budget: Budget,
        persistent: Callable[[Any], Any] | None = None,
    ) -> None:
        self.budget = budget
        self._stream = stream
        self._names = names
        self._persistent = persistent
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def run(self) -> Any:
        """Read up to the STOP instruction and return the value.

        Raises:
            RefusedError: the pickle is cut short or malformed, or asks for what the table lacks.
        """
        budget, stack = self.budget, self._stack  # this loop is where a large file spends its time
        try:
            for opcode, argument, _ in genops(cast(IO[bytes], self._stream)):
                budget.left -= 1
                if budget.left < 0 or len(stack) > MAX_STACK:
                    budget.refuse()
                self._step(opcode.name, argument)
            value = self._pop()
        except (IndexError, KeyError, ValueError, TypeError, OverflowError) as error:
            if isinstance(error, RefusedError):
                raise
            reason = str(error)[:100]
            raise RefusedError(f"is cut short or no well-formed pickle ({reason})") from error
        check_nesting(value, self.budget)
        return value

    def _pop(self) -> Any:
        value = self._stack.pop()
        if value is _MARK:
            raise ValueError("a mark where a value belongs")
        return value

    def _pop_to_mark(self) -> list[Any]:
        items = []
        while (item := self._stack.pop()) is not _MARK:
            items.append(item)
        return items[::-1]

    def _top(self, *kinds: type) -> Any:
        value = self._stack[-1]
        if value is _MARK or (kinds and not isinstance(value, kinds)):
            raise ValueError(f"a {type(value).__name__} where another value belongs")
        return value

    def _step(self, name: str, argument: Any) -> None:
        if name in _CONSTANTS:
            self._stack.append(_CONSTANTS[name])
        elif name in _EMPTY:
            self._stack.append(_EMPTY[name]())
        elif name in _TUPLES:
            items = [self._pop() for _ in range(_TUPLES[name])]
            self._stack.append(tuple(items[::-1]))
        elif name in _INSTRUCTIONS:
            _INSTRUCTIONS[name](self, argument)
        elif name.startswith(("EXT", "PERSID", "NEXT_BUFFER", "READONLY_BUFFER")):
            raise RefusedError(f"uses the pickle instruction {name}, which no network file needs")
        elif name not in _IGNORED:  # every other instruction carries its value with it
            if isinstance(argument, int) and argument.bit_length() > MAX_BITS:
                raise RefusedError(
                    f"holds a number of {argument.bit_length()} bits, as if to exhaust"
                )
            self._stack.append(argument)

    def _put(self, index: int | None) -> None:
        self._memo[len(self._memo) if index is None else index] = self._top()

    def _get(self, index: int) -> None:
        self._stack.append(self._memo[index])

    def _extend(self, items: Iterable[Any]) -> None:
        self._top(list).extend(items)

    def _set_items(self, items: list[Any]) -> None:
        target = self._top(dict)
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[check_key(key)] = value

    def _add_items(self, items: list[Any]) -> None:
        self._top(set).update(map(check_key, items))

    def _dict(self, items: list[Any]) -> None:
        self._stack.append({})
        self._set_items(items)

    def _name(self, module: Any, attribute: Any) -> None:
        if not isinstance(module, str) or not isinstance(attribute, str):
            raise RefusedError("asks for a name that is no text")
        full = f"{module}.{attribute}"
        if full not in self._names:
            raise RefusedError(
                f"asks for {readable_name(full)}, which no network file needs; nothing was run, "
                "and the file should not be trusted"
            )
        self._stack.append(Name(full))

    def _call(self, called: Any, args: Any) -> None:
        if not isinstance(called, Name) or not isinstance(args, tuple):
            raise RefusedError(f"calls a {type(called).__name__}, which no network file needs")
        maker = self._names[called.name]
        if maker is None:
            raise RefusedError(f"calls {called.name}, which is a mere name in network files")
        try:
            self._stack.append(maker(self, args))
        except (TypeError, ValueError, AttributeError) as error:
            if isinstance(error, RefusedError):
                raise
            raise RefusedError(f"gives {called.name} arguments that it does not take") from error

    def _reduce(self) -> None:
        args, called = self._pop(), self._pop()
        self._call(called, args)

    def _reduce_with_keywords(self) -> None:
        if self._pop() != {}:
            raise RefusedError("makes an object with named arguments, which no network file needs")
        self._reduce()

    def _instance(self, name: str) -> None:
        args = self._pop_to_mark()
        self._name(*name.split(" ", 1))
        self._call(self._pop(), tuple(args))

    def _object(self) -> None:
        called, *args = self._pop_to_mark()
        self._call(called, tuple(args))

    def _build(self) -> None:
        state = self._pop()
        target = self._top(Record, dict)
        if isinstance(target, Record):  # what else a mapping carries says nothing about a network
            target.set_state(state)

    def _persistent_id(self) -> None:
        if self._persistent is None:
            raise RefusedError("uses the pickle instruction BINPERSID, which no network file needs")
        self._stack.append(self._persistent(self._pop()))


_INSTRUCTIONS: dict[str, Callable[[PickleMachine, Any], Any]] = {
    "MARK": lambda machine, _: machine._stack.append(_MARK),
    "POP": lambda machine, _: machine._stack.pop(),
    "POP_MARK": lambda machine, _: machine._pop_to_mark(),
    "DUP": lambda machine, _: machine._stack.append(machine._top()),
    "PUT": PickleMachine._put,
    "BINPUT": PickleMachine._put,
    "LONG_BINPUT": PickleMachine._put,
    "MEMOIZE": PickleMachine._put,
    "GET": PickleMachine._get,
    "BINGET": PickleMachine._get,
    "LONG_BINGET": PickleMachine._get,
    "APPEND": lambda machine, _: machine._extend([machine._pop()]),
    "APPENDS": lambda machine, _: machine._extend(machine._pop_to_mark()),
    "SETITEM": lambda machine, _: machine._set_items([machine._pop(), machine._pop()][::-1]),
    "SETITEMS": lambda machine, _: machine._set_items(machine._pop_to_mark()),
    "ADDITEMS": lambda machine, _: machine._add_items(machine._pop_to_mark()),
    "LIST": lambda machine, _: machine._stack.append(machine._pop_to_mark()),
    "TUPLE": lambda machine, _: machine._stack.append(tuple(machine._pop_to_mark())),
    "DICT": lambda machine, _: machine._dict(machine._pop_to_mark()),
    "FROZENSET": lambda machine, _: machine._stack.append(as_set(machine._pop_to_mark())),
    "GLOBAL": lambda machine, name: machine._name(*name.split(" ", 1)),
    "STACK_GLOBAL": lambda machine, _: machine._name(*[machine._pop(), machine._pop()][::-1]),
    "REDUCE": lambda machine, _: machine._reduce(),
    "NEWOBJ": lambda machine, _: machine._reduce(),
    "NEWOBJ_EX": lambda machine, _: machine._reduce_with_keywords(),
    "INST": PickleMachine._instance,
    "OBJ": lambda machine, _: machine._object(),
    "BUILD": lambda machine, _: machine._build(),
    "BINPERSID": lambda machine, _: machine._persistent_id(),
}


def readable_name(name: str) -> str:
    """A name out of a file for an error message: short, printable, and as programmers know it.

    >>> readable_name("posix.system")
    'os.system (written as posix.system)'
    """
    shown = ascii(name if len(name) <= 80 else f"{name[:77]}...")[1:-1]
    module, dot, attribute = shown.partition(".")
    public_module = {"posix": "os", "nt": "os", "__builtin__": "builtins"}.get(module)
    return f"{public_module}{dot}{attribute} (written as {shown})" if public_module else shown


def check_key(key: Any) -> str | int | None:
    """Let text and small numbers be keys: nested tuples recurse when hashed, big numbers collide.

    Raises:
        RefusedError: the key is something else.
    """
    if key is None or isinstance(key, str) or (isinstance(key, int) and abs(key) < 2**31):
        return key
    raise RefusedError(f"uses a {type(key).__name__} as a key, which no network file needs")


def as_set(items: Iterable[Any]) -> frozenset[Any]:
    """A set of keys."""
    return frozenset(map(check_key, items))


def check_nesting(root: Any, budget: Budget) -> None:
    """Refuse values that nest too deep or contain themselves, so that readers may recurse.

    Each container is entered once however often it is referred to, so that a nest of shared
    references (whose unfolding would be exponential) costs no more than its instructions.
    """
    depths: dict[int, int] = {}
    path = [(root, iter(_parts(root)), [0])]
    while path:
        value, rest, depth = path[-1]
        for part in rest:
            budget.spend()
            if not isinstance(part, list | tuple | dict | Record):
                continue
            if id(part) not in depths:
                depths[id(part)] = -1  # being looked at
                path.append((part, iter(_parts(part)), [0]))
                break
            if depths[id(part)] < 0:
                raise RefusedError(
                    "holds a value that contains itself, which no network file needs"
                )
            depth[0] = max(depth[0], depths[id(part)] + 1)
        else:
            path.pop()
            depths[id(value)] = depth[0]
            if path:
                path[-1][2][0] = max(path[-1][2][0], depth[0] + 1)
        if len(path) > MAX_DEPTH or depth[0] > MAX_DEPTH:
            raise RefusedError(f"nests deeper than {MAX_DEPTH}, as if made to exhaust")


def _parts(value: Any) -> Iterable[Any]:
    if isinstance(value, Record):
        return value.parts()
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list | tuple) else ()
