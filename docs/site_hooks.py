"""What MkDocs has to be told of this repository: where the package lies, and pages beside docs/."""

import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files

CHECKOUT = Path(__file__).resolve().parents[1]
BESIDE = ("SECURITY.md",)
"""Files at the top of the repository that are pages of the site, too."""

EXAMPLE = re.compile(r'^( +)>>> .*\n(?:\1(?!""")\S.*\n)*', re.MULTILINE)
"""Examples in a docstring: as far as the next empty line, or its end."""

_package = tempfile.TemporaryDirectory(prefix="genlab-docs-")


@event_priority(100)  # before mkdocstrings reads its settings
def on_config(config: Any) -> Any:
    """Let mkdocstrings find ``genlab.samplers`` and ``genlab.eval``, which a checkout has outside.

    It reads the sources and imports nothing, so that neither torch nor GenLab has to be installed.
    """
    package = Path(_package.name, "genlab")
    for source, target in (("genlab", ""), ("samplers", "samplers"), ("eval", "eval")):
        shutil.copytree(
            CHECKOUT / source, package / target, ignore=_all_but_code, dirs_exist_ok=True
        )
    for path in package.rglob("*.py"):
        path.write_text(_fenced(path.read_text(encoding="utf-8")), encoding="utf-8")
    handlers = config.plugins["mkdocstrings"].config.handlers
    handlers.setdefault("python", {})["paths"] = [_package.name]
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that lie beside docs/."""
    for name in BESIDE:
        text = (CHECKOUT / name).read_text(encoding="utf-8")
        files.append(File.generated(config, name, content=_inside(text)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Point links to those pages at their place in the site; in the repository they lead up."""
    for name in BESIDE:
        markdown = markdown.replace(f"](../{name}", f"]({name}")
    return markdown


def _fenced(source: str) -> str:
    """Python with the examples of docstrings as blocks of code; ``>>>`` would be a quotation."""
    return EXAMPLE.sub(lambda match: f"{match[1]}```pycon\n{match[0]}{match[1]}```\n", source)


def _all_but_code(folder: str, names: list[str]) -> set[str]:
    """What is not copied; links would do, but griffe follows none to folders."""
    paths = [Path(folder, name) for name in names]
    return {path.name for path in paths if path.is_file() and path.suffix != ".py"}


def _inside(text: str) -> str:
    """The text of a page beside docs/, with its links into docs/ as they are in the site."""
    return re.sub(r"\]\(docs/", "](", text)
