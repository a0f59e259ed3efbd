"""What stands beside the code: citation, templates, container, the table of extras."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from genlab.cli import COMMANDS

CHECKOUT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    path = CHECKOUT / "pyproject.toml"
    if not path.is_file():
        pytest.skip("no checkout around the tests")
    facts: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))["project"]
    return facts


def read_yaml(name: str) -> Any:
    return OmegaConf.to_container(OmegaConf.load(CHECKOUT / name))


def test_the_citation_is_of_this_version(project: dict[str, Any]) -> None:
    citation = read_yaml("CITATION.cff")
    assert citation["version"] == project["version"]
    assert citation["license"] == project["license"]
    assert [author["name"] for author in citation["authors"]] == [
        author["name"] for author in project["authors"]
    ]
    assert {"cff-version", "message", "title"} <= citation.keys()


def test_the_table_of_extras_is_whole(project: dict[str, Any]) -> None:
    """Each extra has a row, and the row names what it brings."""
    text = (CHECKOUT / "docs" / "install.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `(\w+)` \| ([^|]+) \|", text, re.MULTILINE))
    extras = project["optional-dependencies"]
    assert rows.keys() == extras.keys()
    for name in extras.keys() - {"dev"}:
        assert all(re.split(r"[<>=]", package)[0] in rows[name] for package in extras[name])


@pytest.mark.parametrize("name", ["bug", "idea"])
def test_forms_of_issues(name: str, project: dict[str, Any]) -> None:
    form = read_yaml(f".github/ISSUE_TEMPLATE/{name}.yml")
    assert form["name"]
    assert form["description"]
    identifiers = [part["id"] for part in form["body"] if part["type"] != "markdown"]
    assert len(identifiers) == len(set(identifiers)) > 1
    assert all(
        part["type"] in {"markdown", "textarea", "checkboxes", "input", "dropdown"}
        for part in form["body"]
    )


def test_the_container_gets_what_the_wheel_is_made_of(project: dict[str, Any]) -> None:
    """And extras and commands that there are."""
    allowed = {
        line[1:]
        for line in (CHECKOUT / ".dockerignore").read_text(encoding="utf-8").splitlines()
        if line.startswith("!")
    }
    settings = tomllib.loads((CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))
    folders = {"genlab", *settings["tool"]["setuptools"]["package-dir"].values()}
    assert allowed == {"pyproject.toml", project["readme"], *project["license-files"], *folders}
    docker = (CHECKOUT / "docker" / "Dockerfile").read_text(encoding="utf-8")
    (extras,) = re.findall(r"^ARG EXTRAS=(\S+)$", docker, re.M)
    assert set(extras.split(",")) <= project["optional-dependencies"].keys()
    (command,) = re.findall(r'^CMD \["(\w+)"\]$', docker, re.M)
    assert command in COMMANDS
    users = re.findall(r"^USER (\S+)$", docker, re.M)
    assert users
    assert users[-1] != "root"
    assert docker.index("USER ") < docker.index("&& genlab doctor")  # the smoke test is the user's


def test_commands_on_the_pages_of_hub_and_installation_exist() -> None:
    for page in ("docs/hub.md", "docs/install.md", "SECURITY.md"):
        path = CHECKOUT / page
        if not path.is_file():
            pytest.skip("no checkout around the tests")
        text = path.read_text(encoding="utf-8")
        found = set(re.findall(r"(?:^|[`\"$(])genlab ([a-z][a-z-]*)", text, re.M))
        assert found
        assert found - COMMANDS.keys() == set(), page
