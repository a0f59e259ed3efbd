"""Pickles made to do harm: refused by the name of what they tried, quickly, in little memory."""

import pickle
import resource
import struct
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from network_pickles import Persistent, write_pickle
from torch import nn

import genlab
from genlab.checkpoints.pickles.machine import MAX_WORK
from genlab.checkpoints.pickles.tuples import check_tuples
from genlab.checkpoints.readers.edm_pickle import read_pickle
from genlab.checkpoints.weights import read_state_dict
from genlab.errors import CheckpointError

WORK = 20_000
"""The limit on instructions here: the test run's type checks make each of them slow."""
SECONDS = 20
MEGABYTES = 300


class Call:
    """Pickles as a call of anything with anything."""

    def __init__(self, called: Any, *args: Any) -> None:
        self.called, self.args = called, args

    def __reduce__(self) -> tuple[Any, ...]:
        return self.called, self.args


def short(*parts: bytes | str) -> bytes:
    """A hand-written pickle of protocol 4."""
    return b"\x80\x04" + b"".join(p.encode() if isinstance(p, str) else p for p in parts) + b"."


def text(value: str) -> bytes:
    data = value.encode()
    return b"\x8c" + bytes([len(data)]) + data


def by_name(module: str, name: str, *args: str) -> bytes:
    return short(
        text(module), text(name), b"\x93", *map(text, args), b"\x85" if args else b")", b"R"
    )


def os_system(mark: Path) -> bytes:
    import os

    return pickle.dumps(Call(os.system, f"touch {mark}"))


def as_storage(payload: bytes) -> bytes:
    """Another pickle hidden in the byte string of a tensor's storage."""
    return pickle.dumps({"ema": Call(torch.storage._load_from_bytes, payload)})


NAMED: list[tuple[str, Callable[[Path], bytes], str]] = [
    ("os.system", os_system, r"asks for os\.system"),
    ("inside the network", lambda m: pickle.dumps({"ema": [Call(eval, "1+1")]}), r"builtins\.eval"),
    ("exec", lambda m: pickle.dumps(Call(exec, f"open({str(m)!r}, 'w')")), r"builtins\.exec"),
    ("compile", lambda m: pickle.dumps(Call(compile, "1", "x", "eval")), r"builtins\.compile"),
    ("getattr", lambda m: pickle.dumps(Call(getattr, "", "join")), r"builtins\.getattr"),
    ("import", lambda m: pickle.dumps(Call(__import__, "os")), r"builtins\.__import__"),
    ("dotted", lambda m: by_name("torch", "serialization.os.system", "id"), r"serialization\.os"),
    ("popen", lambda m: by_name("subprocess", "Popen", "id"), r"asks for subprocess\.Popen"),
    ("torch.load", lambda m: by_name("torch", "load", "x.pt"), r"asks for torch\.load"),
    ("numpy.load", lambda m: by_name("numpy", "load", "x.npy"), r"asks for numpy\.load"),
    ("the official loader", lambda m: by_name("pickle", "loads", "x"), r"asks for pickle\.loads"),
    ("unknown", lambda m: by_name("no_such.module", "thing"), r"asks for no_such\.module\.thing"),
    ("hidden in a look-alike", lambda m: by_name("torch\u200b", "Size"), r"torch\\u200b\.Size"),
    ("protocol 0", lambda m: b"cos\nsystem\n(S'id'\ntR.", r"asks for os\.system"),
    ("INST", lambda m: b"(S'id'\nios\nsystem\n.", r"asks for os\.system"),
    ("OBJ", lambda m: b"(cos\nsystem\nS'id'\no.", r"asks for os\.system"),
    ("by extension code", lambda m: short(b"\x82\x01"), "uses the pickle instruction EXT1"),
    ("persistent id", lambda m: short(text("x"), b"Q"), "uses the pickle instruction BINPERSID"),
    ("persistent text", lambda m: b"Pid\n.", "uses the pickle instruction PERSID"),
    ("buffer", lambda m: short(b"\x97"), "uses the pickle instruction NEXT_BUFFER"),
    ("in a storage", lambda m: as_storage(os_system(m)), r"asks for os\.system"),
    (
        "in a storage's description",
        lambda m: as_storage(
            pickle.dumps(0x1950A86A20F9469CFC6C) + pickle.dumps(1001) + os_system(m)
        ),
        r"asks for os\.system",
    ),
    ("in a key", lambda m: pickle.dumps({Call(eval, "1"): 1}), r"asks for builtins\.eval"),
    ("setattr", lambda m: by_name("builtins", "setattr", "x"), r"asks for builtins\.setattr"),
]


@pytest.mark.parametrize(("make", "message"), [n[1:] for n in NAMED], ids=[n[0] for n in NAMED])
def test_refused_by_name(make: Callable[[Path], bytes], message: str, tmp_path: Path) -> None:
    mark, file = tmp_path / "mark", tmp_path / "evil.pkl"
    file.write_bytes(make(mark))
    with pytest.raises(CheckpointError, match=message) as caught:
        genlab.convert(file)
    assert str(caught.value).startswith(str(file))
    assert "\n" not in str(caught.value)
    assert not mark.exists()


def nested_lists(depth: int) -> bytes:
    return short(b"]" * depth, b"a" * (depth - 1))


def nested_tuples(depth: int) -> bytes:
    return short(b")", b"\x85" * depth)


def doubling(times: int) -> bytes:
    """A list of twice the list before, and so on: 2^times leaves in a few bytes."""
    steps = (b"\x94](h" + bytes([index]) + b"h" + bytes([index]) + b"e" for index in range(times))
    return short(b"]", *steps)


def copies(times: int, length: int) -> bytes:
    """One list, from which many ordered mappings are made."""
    pair = b"(" + b"K\x01K\x02\x86" * length + b"e"
    name = text("collections") + text("OrderedDict") + b"\x93\x94"
    return short(b"]", pair, b"\x94", name, b"h\x01h\x00\x85R0" * times)


EXHAUSTING: list[tuple[str, Callable[[], bytes], str]] = [
    ("deep lists", lambda: nested_lists(1000), "nests deeper than 200"),
    ("deep tuples", lambda: nested_tuples(10_000), "nests deeper than 200"),
    ("a bit too deep", lambda: nested_tuples(250), "nests deeper than 200"),
    ("deep marks", lambda: short(b"(" * 30_000), "takes more work"),
    ("itself", lambda: short(b"]\x94h\x00a"), "contains itself"),
    ("shared lists", lambda: doubling(60), "holds no network under the key"),
    ("huge text", lambda: short(b"\x8d" + struct.pack("<Q", 1 << 50)), "is cut short"),
    ("huge bytes", lambda: short(b"\x8e" + struct.pack("<Q", 1 << 62)), "is cut short"),
    ("huge array", lambda: short(b"\x96" + struct.pack("<Q", 1 << 40)), "is cut short"),
    ("huge frame", lambda: short(b"\x95" + struct.pack("<Q", 1 << 60), b"N"), "no network"),
    ("huge memo index", lambda: short(b"Nr\xff\xff\xff\xff"), "no network"),
    ("huge number", lambda: short(b"\x8b" + struct.pack("<I", 10**6), b"\x01" * 10**6), "bits"),
    ("long digits", lambda: b"I" + b"9" * 10**6 + b"\n.", "cut short or no well-formed"),
    ("many instructions", lambda: short(b"N0" * WORK), "takes more work"),
    ("memo bomb", lambda: short(b"]" + b"\x94" * 2 * WORK), "takes more work"),
    ("copies", lambda: copies(WORK // 20, 100), "takes more work"),
    ("tuple as key", lambda: short(b"})\x85Ns"), "uses a tuple as a key"),
    ("big number as key", lambda: short(b"}\x8a\x08", b"\x7f" * 8, b"Ns"), "uses a int as a key"),
    ("empty", lambda: b"", "cannot be read"),
    ("no pickle", lambda: b"PK\x03\x04" + b"x" * 100, "cut short or no well-formed"),
    ("stack underflow", lambda: short(b"R"), "cut short or no well-formed"),
    ("mark as value", lambda: short(b"(\x85"), "cut short or no well-formed"),
    ("items of a number", lambda: short(b"K\x01NNs"), "cut short or no well-formed"),
    ("call of a number", lambda: short(b"K\x01)R"), "calls a int"),
]


@pytest.mark.parametrize(
    ("make", "message"), [e[1:] for e in EXHAUSTING], ids=[e[0] for e in EXHAUSTING]
)
def test_refused_before_it_costs(
    make: Callable[[], bytes], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("genlab.checkpoints.pickles.machine.MAX_WORK", WORK)
    file = tmp_path / "evil.pkl"
    file.write_bytes(make())
    before, start = peak_megabytes(), time.process_time()
    with pytest.raises(CheckpointError, match=message):
        read_pickle(file)
    assert time.process_time() - start < SECONDS
    assert peak_megabytes() - before < MEGABYTES


COSTS = """
import resource, sys, time
from pathlib import Path
from genlab.checkpoints.readers.edm_pickle import read_pickle
from genlab.errors import CheckpointError

before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
try:
    read_pickle(Path(sys.argv[1]))
except CheckpointError as error:
    print(error)
print(time.process_time() - start)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "data",
    [
        short(b"N0" * MAX_WORK),
        short(b"(" * 2 * MAX_WORK),
        short(b"]\x94" * 2 * MAX_WORK),
        short(b"\x8f0" * MAX_WORK),
        nested_tuples(2 * MAX_WORK),
        nested_tuples(MAX_WORK - 100),
        copies(1000, 100_000),
    ],
    ids=["instructions", "marks", "memo", "sets", "tuples", "fewer tuples", "copies"],
)
def test_cost_at_the_real_limit(data: bytes, tmp_path: Path) -> None:
    """Seconds and memory of a refusal, in a process without type checks."""
    file = tmp_path / "evil.pkl"
    file.write_bytes(data)
    command = [sys.executable, "-c", COSTS, str(file)]
    result = subprocess.run(command, capture_output=True, text=True)
    sentence, seconds, kilobytes = result.stdout.splitlines()
    assert "exhaust" in sentence
    assert float(seconds) < SECONDS
    assert int(kilobytes) / 1024 < MEGABYTES


def peak_megabytes() -> float:
    unit = 1 << 20 if sys.platform == "darwin" else 1 << 10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


# Tensors that claim more than they bring.


def one_tensor(**changes: Any) -> Persistent:
    """A network with one tensor, whose rebuild call is written with other arguments."""
    storage = torch.arange(4.0)._typed_storage()
    arguments = {"offset": 0, "size": (4,), "stride": (1,), **changes}
    net = Persistent("EDMPrecond", _init_args=(), _init_kwargs={})
    net._parameters["w"] = Call(  # type: ignore[assignment]  # what makes a tensor
        torch._utils._rebuild_tensor_v2, storage, *arguments.values(), False, {}
    )
    return net


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": (1 << 40,)}, "announces a tensor of shape .* in 4 numbers"),
        ({"size": (1 << 20, 1 << 20), "stride": (0, 0)}, "announces a tensor"),
        ({"size": (2,), "stride": (1 << 40,)}, "announces a tensor"),
        ({"offset": 1}, "announces a tensor"),
        ({"offset": -1}, "gives a tensor shape"),
        ({"size": (-4,)}, "odd shape"),
        ({"size": (2.0,)}, "odd shape"),
        ({"size": (1,) * 40, "stride": (1,) * 40}, "odd shape"),
        ({"stride": ()}, "gives a tensor shape"),
        ({"size": "4"}, "odd shape"),
    ],
)
def test_tensor_claims(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    fine = read_pickle(write_pickle(tmp_path / "fine.pkl", {"ema": one_tensor()}))
    assert fine.tensors["w"].to_tensor().tolist() == [0, 1, 2, 3]
    file = write_pickle(tmp_path / "evil.pkl", {"ema": one_tensor(**changes)})
    with pytest.raises(CheckpointError, match=message):
        read_pickle(file)


def test_storage_claims(tmp_path: Path) -> None:
    """A storage that counts more numbers than follow."""
    file = write_pickle(tmp_path / "net.pkl", {"ema": one_tensor()})
    data = file.read_bytes()
    assert data.count(struct.pack("<q", 4)) == 1  # the count before the numbers
    file.write_bytes(data.replace(struct.pack("<q", 4), struct.pack("<q", 1 << 40)))
    with pytest.raises(CheckpointError, match="announces a storage of 4 numbers"):
        read_pickle(file)


def test_one_storage_for_many_tensors(tmp_path: Path) -> None:
    """Many names for the same numbers would make a network that is larger than its file."""
    net = one_tensor()
    big = nn.Parameter(torch.ones(10_000))
    for index in range(50):
        net._parameters[f"w{index}"] = big
    with pytest.raises(CheckpointError, match="describes more numbers than it holds"):
        read_pickle(write_pickle(tmp_path / "evil.pkl", {"ema": net}))


def test_many_names_for_the_same_modules(tmp_path: Path) -> None:
    """Modules that hold the next one twice: a walk through all names would never end."""
    module: nn.Module = Persistent("Block")
    for _ in range(40):
        outer = Persistent("Block")
        outer._modules.update(a=module, b=module)
        module = outer
    net = Persistent("EDMPrecond", _init_args=(), _init_kwargs={})
    net._modules["model"] = module
    with pytest.raises(CheckpointError, match="holds more than 5000 modules"):
        read_pickle(write_pickle(tmp_path / "evil.pkl", {"ema": net}))


def test_numpy_claims(tmp_path: Path) -> None:
    import numpy as np

    for value, message in (
        (np.array(["text"]), "NumPy values of type 'U4'"),
        (np.array([object], dtype=object), "type 'O8'"),
    ):
        with pytest.raises(CheckpointError, match=message):
            read_pickle(write_pickle(tmp_path / "evil.pkl", {"ema": value}))
    data = write_pickle(tmp_path / "evil.pkl", {"ema": np.arange(3.0)}).read_bytes()
    assert data.count(b"K\x03\x85") == 1  # the shape
    (tmp_path / "evil.pkl").write_bytes(data.replace(b"K\x03\x85", b"K\x63\x85"))
    with pytest.raises(CheckpointError, match=r"announces a NumPy array of \(99,\) and gives 24"):
        read_pickle(tmp_path / "evil.pkl")


def shared_tuples(levels: int) -> bytes:
    """A tuple that holds one tuple twice, which holds another twice, and so on."""
    return b"".join([b")", *(b"\x94h" + bytes([i]) + b"\x86" for i in range(levels))])


BOMBS = {
    "as a key": short("}", shared_tuples(60), text("v"), "s"),
    "as an entry of a set": short(b"\x8f(", shared_tuples(60), b"\x90"),
    "deep": short("}", ")", b"\x85" * 100_000, text("v"), "s"),
}


@pytest.mark.parametrize("content", BOMBS.values(), ids=BOMBS)
@pytest.mark.parametrize("legacy", [False, True])
def test_nested_tuples_in_a_file_of_torch(content: bytes, legacy: bool, tmp_path: Path) -> None:
    file = tmp_path / "bomb.pt"
    torch.save({"a": torch.zeros(2)}, file, _use_new_zipfile_serialization=not legacy)
    if legacy:
        plain = file.read_bytes()
        marks: tuple[object, ...] = (0x1950A86A20F9469CFC6C, 1001, {})
        heads = [pickle.dumps(mark, protocol=2) for mark in marks]
        assert plain.startswith(b"".join(heads[:2]))
        file.write_bytes(b"".join(heads) + content)
    else:
        with zipfile.ZipFile(file) as archive:
            entries = {name: archive.read(name) for name in archive.namelist()}
        with zipfile.ZipFile(file, "w") as archive:
            for name, data in entries.items():
                archive.writestr(name, content if name.endswith("data.pkl") else data)
    begun = time.process_time()
    with pytest.raises(CheckpointError, match=r"unfolds to far more|nests deeper") as caught:
        read_state_dict(file)
    assert str(caught.value).startswith(str(file))
    assert time.process_time() - begun < SECONDS


def test_what_files_of_torch_usually_hold_passes(tmp_path: Path) -> None:
    state: dict[str, Any] = {
        "model": {f"layer.{i}.weight": torch.zeros(2, 3) for i in range(50)},
        "optimizer": {"state": {i: {"betas": (0.9, 0.99)} for i in range(50)}},
        "losses": [(step, step / 7) for step in range(5000)],
        "shape": torch.Size([3, 4]),
    }
    for name, zipped in (("new.pt", True), ("old.pt", False)):
        torch.save(state, tmp_path / name, _use_new_zipfile_serialization=zipped)
        check_tuples(tmp_path / name)
