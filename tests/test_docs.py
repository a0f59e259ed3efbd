"""What the pages of docs/ say of the program: commands, options, files and formats that there are.

Whether they link and build is for ``make docs``.
"""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from genlab.checkpoints.readers.base import READERS
from genlab.cli import genlab
from genlab.cli.groups import DefaultGroup

CHECKOUT = Path(__file__).resolve().parents[1]
DOCS = CHECKOUT / "docs"
BLOCK = re.compile(r"^```(?:sh|bash)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"(?P<inside>\$\()?(?:^|\s|(?<=\())genlab (?=[a-z-])")
END = {"|", ">", ">>", "<", "&&"}

if not DOCS.is_dir():
    pytest.skip("no checkout around the tests", allow_module_level=True)

PAGES = sorted([CHECKOUT / "README.md", CHECKOUT / "SECURITY.md", *DOCS.rglob("*.md")])


def commands(text: str) -> Iterator[list[str]]:
    """The arguments of each command of the program in the blocks for a shell.

    >>> list(commands("```sh\\ngenlab eval out/ -q | less  # all\\n```\\n"))
    [['eval', 'out/', '-q']]
    """
    for block in BLOCK.findall(text):
        for line in block.replace("\\\n", " ").splitlines():
            found = COMMAND.search(line)
            if found and not line.lstrip().startswith("#"):
                rest = line[found.end() :]
                yield _until_end(rest.partition(")")[0] if found["inside"] else rest)


def _until_end(rest: str) -> list[str]:
    words = []
    for word in shlex.split(rest, comments=True):
        if word in END:
            break
        words.append(word.rstrip(";"))
        if word.endswith(";"):
            break
    return words


def check(arguments: list[str]) -> None:
    """Parse a command's arguments, without running it or asking whether its files are there.

    Raises:
        click.UsageError: there is no such command or option, or an argument is missing.
    """
    command: click.Command = genlab
    context = click.Context(genlab, info_name="genlab")
    while isinstance(command, click.Group):
        own = arguments and (arguments[0] in command.list_commands(context))
        if isinstance(command, DefaultGroup) and not own:
            command = command.default
        elif arguments and arguments[0].startswith("-"):
            break
        elif arguments:
            _, found, arguments = command.resolve_command(context, arguments)
            assert found is not None
            command = found
        else:
            break
        context = click.Context(command, parent=context, info_name=command.name)
    values, rest, _ = command.make_parser(context).parse_args(list(arguments))
    if rest and not any(isinstance(p, click.Argument) and p.nargs == -1 for p in command.params):
        raise click.UsageError(f"unexpected {rest}")
    for parameter in command.params:
        value = values.get(parameter.name or "")
        if isinstance(parameter, click.Option) and isinstance(parameter.type, click.Choice):
            for each in [value] if isinstance(value, str) else value or ():
                parameter.type.convert(each, parameter, context)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(CHECKOUT)))
def test_commands_exist(page: Path) -> None:
    for arguments in commands(page.read_text(encoding="utf-8")):
        try:
            check(arguments)
        except click.UsageError as error:
            pytest.fail(f"genlab {shlex.join(arguments)}: {error.format_message()}")


def test_commands_are_found() -> None:
    """The pages have many, in every manner of writing."""
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    found = list(commands(text))
    assert len(found) > 150
    assert ["completion", "bash"] in found  # eval "$(genlab completion bash)"
    assert any("--multi_gpu" not in words and "--protocol" in words for words in found)


@pytest.mark.parametrize(
    "line",
    [
        "genlab smaple edm-fmnist",
        "genlab sample edm-fmnist --sedes 0-3",
        "genlab sample edm-fmnist --format jpg",
        "accelerate launch -m genlab eval my-model/ --protocoll quick-5k",
        "genlab train export runs/mine --to my-model/",
        "genlab adapter delete mine",
    ],
)
def test_mistakes_are_noticed(line: str) -> None:
    (arguments,) = commands(f"```sh\n{line}\n```\n")
    with pytest.raises(click.UsageError):
        check(arguments)


def test_files_on_the_design_page_are_there() -> None:
    text = (DOCS / "design.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`((?:genlab|samplers|eval|tests)/[\w/.]*)`", text))
    placeholders = {path for path in named if "NAME" in path}
    assert len(named - placeholders) > 30
    for path in placeholders:
        assert (CHECKOUT / path).parent.is_dir(), path
    assert [path for path in named - placeholders if not (CHECKOUT / path).exists()] == []


def test_every_format_has_a_row() -> None:
    text = (DOCS / "checkpoints.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([\w+-]+)` \|", text, re.MULTILINE)
    own = [name for name in READERS if (READERS.place(name) or "").startswith("genlab.")]
    assert sorted(rows) == sorted(own)
