"""Every cure that a message names can be followed: its command, its options, its settings exist."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

import genlab
from genlab import cli, schema
from genlab.cli.common import refuse_duplicates
from genlab.cli.groups import DefaultGroup
from genlab.eval.config import EvalConfig
from genlab.finetuning.config import FinetuneConfig
from genlab.runs.config import SampleConfig
from genlab.training.config import TrainConfig

SCHEMAS = (TrainConfig, FinetuneConfig, SampleConfig, EvalConfig)
SECTIONS = ("data", "output", "validation", "stopping", "optimizer", "schedule", "ema", "classes")
OF_SAMPLERS = tuple(f"schedule.{option}" for option in ("name", "num_steps", "sigma_max"))
"""Settings within ``sampler``, as what is said of a sampler names them."""

FREE = ("optimizer.networks",)
ROOTS = [Path(genlab.__path__[0])]
ROOTS += [
    ROOTS[0].parent / name for name in ("eval", "samplers") if (ROOTS[0].parent / name).is_dir()
]


def texts() -> Iterator[tuple[str, str]]:
    """File and text of every string in the library; what is filled in shows as X."""
    for path in sorted(file for root in ROOTS for file in root.rglob("*.py")):
        inside: set[int] = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                inside |= {id(part) for part in node.values}
                parts = (p.value if isinstance(p, ast.Constant) else "X" for p in node.values)
                yield path.name, "".join(map(str, parts))
            elif isinstance(node, ast.Constant) and id(node) not in inside:
                yield path.name, str(node.value)


def quoted_commands() -> list[tuple[str, str]]:
    found = [
        (file, " ".join(match[1].split()))
        for file, text in texts()
        for match in re.finditer(r"'genlab ([a-z][^'\n]*(?:\n[^'\n]*)?)'", text)
        if "%" not in match[1]  # the header of a format is no command
    ]
    return sorted(set(found))


def settings() -> list[tuple[str, str]]:
    pattern = rf"\b((?:{'|'.join(SECTIONS)})(?:\.[a-z_]+)+)\b(?!\.(?:py|json|yaml|pkl|pth|npz|zip))"
    found = [
        (file, match[1])
        for file, text in texts()
        for match in re.finditer(pattern, text)
        if "genlab." not in text[max(0, match.start() - 40) : match.start()]
        and not match[1].endswith((".json", ".yaml", ".npz", ".zip", ".py", ".jsonl"))
    ]
    return sorted(set(found))


def options_of(command: click.Command) -> set[str]:
    own = {opt for param in command.params for opt in (*param.opts, *param.secondary_opts)}
    inner = command.commands.get("run") if isinstance(command, click.Group) else None
    if isinstance(command, DefaultGroup):
        inner = command.default
    return own | {"--help"} | (options_of(inner) if inner is not None else set())


def test_the_messages_name_commands() -> None:
    assert len(quoted_commands()) > 30
    assert len(settings()) > 10


@pytest.mark.parametrize(("file", "line"), quoted_commands(), ids=str)
def test_a_command_that_a_message_names_is_there(file: str, line: str) -> None:
    words = line.split()
    context = click.Context(cli.genlab)
    assert words[0] in cli.COMMANDS, f"{file}: genlab {line}"
    command = cli.genlab.get_command(context, words[0])
    assert command is not None
    rest = words[1:]
    if isinstance(command, click.Group) and rest:
        takes_subjects = words[0] in ("eval", "train")
        if not rest[0].startswith("-") and (rest[0] in command.commands or not takes_subjects):
            assert rest[0] in command.commands, f"{file}: genlab {line}"
            command = command.commands[rest.pop(0)]
    known = options_of(command)
    for word in rest:
        if word.startswith("-") and word.strip("-"):
            assert word.partition("=")[0].rstrip(",;:.)") in known, f"{file}: genlab {line}"


@pytest.mark.parametrize(("file", "key"), settings(), ids=str)
def test_a_setting_that_a_message_names_is_there(file: str, key: str) -> None:
    if key.startswith(FREE) or key in OF_SAMPLERS:
        return
    keys = key.split(".")
    assert any(
        schema.hint_of(each, keys) is not None or _is_free(each, keys) for each in SCHEMAS
    ), f"{file}: {key}"


def _is_free(each: type, keys: list[str]) -> bool:
    """Whether the key lies in a mapping that no dataclass describes."""
    hint = schema.fields_of(each).get(keys[0])
    return schema.wants_mapping(hint) and schema.dataclass_in(hint) is None


def test_an_option_and_a_setting_that_say_the_same_are_refused() -> None:
    with pytest.raises(click.UsageError, match=r"--metrics and 'metrics=.*' say the same twice"):
        refuse_duplicates(["metrics=[kd]"], {"metrics": ["fd"]})
    with pytest.raises(click.UsageError, match="--batch-size and 'batch_size=2' say the same"):
        refuse_duplicates(["batch_size=2"], {"batch_size": 4})
    refuse_duplicates(["metrics=[kd]", "count=7"], {"labels": "random"})


@pytest.mark.parametrize("command", ["eval", "sweep"])
def test_metrics_in_two_places(command: str, capfd: pytest.CaptureFixture[str]) -> None:
    said = ["--metrics", "fd,kd", "metrics=[{name: kd, subset_size: 50}]"]
    assert cli.main([command, "edm-fmnist", *said]) == 2
    assert "say the same twice; leave one of them out" in capfd.readouterr().err


def test_presets_of_a_kind(capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["presets", "list", "eval"]) == 0
    out = capfd.readouterr().out
    assert out.splitlines()[0] == "eval (genlab eval MODEL --protocol NAME):"
    assert "offline-2k" in out
    assert "edm-fmnist" not in out
    assert cli.main(["presets", "list", "evil"]) == 2
    assert "did you mean 'eval'" in capfd.readouterr().err
