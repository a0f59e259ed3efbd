"""The package list, the package data and the import rules of the folders beside ``genlab/``."""

import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

CHECKOUT = Path(__file__).resolve().parents[1]
CODE = ("genlab", "samplers", "eval")
SETTINGS = tomllib.loads((CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))
SETUPTOOLS: dict[str, Any] = SETTINGS["tool"]["setuptools"]
BESIDE = [[folder] for folder in ("configs", "eval", "samplers")]
"""Folders that lie beside ``genlab/`` in a checkout."""


def python(*code: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    lines = "\n".join(code)
    return subprocess.run([sys.executable, "-c", lines], cwd=cwd, capture_output=True, text=True)


def dotted(folder: Path) -> str:
    name = ".".join(folder.relative_to(CHECKOUT).parts)
    return name if name.startswith("genlab") else f"genlab.{name}"


def folders_with(pattern: str, below: str) -> set[str]:
    return {dotted(path.parent) for path in (CHECKOUT / below).rglob(pattern)}


def test_package_list_is_the_folders_on_disk() -> None:
    modules = set().union(*(folders_with("*.py", folder) for folder in CODE))
    presets = folders_with("*.yaml", "configs")
    assert set(SETUPTOOLS["packages"]) == modules | presets | {"genlab.configs"}


def test_every_folder_of_modules_is_a_package() -> None:
    for below in CODE:
        for path in (CHECKOUT / below).rglob("*.py"):
            assert (path.parent / "__init__.py").is_file(), f"{path.parent} has no __init__.py"


def test_package_dirs_point_at_folders() -> None:
    for name, folder in SETUPTOOLS["package-dir"].items():
        assert (CHECKOUT / folder).is_dir(), f"{name} points at {folder}"


def test_package_data_are_there() -> None:
    """Every file that is no module is matched by a pattern of ``package-data`` of its package."""
    patterns: dict[str, list[str]] = SETUPTOOLS["package-data"]
    shipped: set[Path] = set()
    for package, globs in patterns.items():
        parts = package.split(".")
        folder = CHECKOUT.joinpath(*(parts if parts[1:2] not in BESIDE else parts[1:]))
        for glob in globs:
            found = {path for path in folder.glob(glob) if path.is_file()}
            assert found, f"package-data of {package}: nothing matches {glob}"
            shipped |= found
    data = {
        path
        for below in (*CODE, "configs")
        for path in (CHECKOUT / below).rglob("*")
        if path.is_file() and path.suffix not in {".py", ".pyc"}
    }
    assert data == shipped


@pytest.mark.parametrize("folder", ["samplers", "eval"])
def test_folders_beside_the_package_refuse_their_bare_name(folder: str) -> None:
    result = python(f"import {folder}", cwd=CHECKOUT)
    assert f"ImportError: this folder is the package genlab.{folder}" in result.stderr


def test_a_checkout_works_without_installing(tmp_path: Path) -> None:
    result = python(
        "import sys",
        f"sys.path.insert(0, {str(CHECKOUT)!r})",
        "import genlab, genlab.samplers, genlab.eval, genlab.config",
        "print(genlab.__file__, genlab.samplers.__name__, genlab.config.preset_kinds())",
        cwd=tmp_path,
    )
    assert result.returncode == 0, result.stderr
    assert str(CHECKOUT) in result.stdout
    assert "genlab.samplers" in result.stdout
    assert "sample" in result.stdout


def test_import_genlab_is_light(tmp_path: Path) -> None:
    result = python(
        "import sys, genlab",
        "heavy = {'torch', 'numpy', 'diffusers', 'omegaconf', 'rich', 'click', 'PIL'}",
        "print(sorted(heavy & set(sys.modules)))",
        cwd=tmp_path,
    )
    assert result.stdout == "[]\n", result.stderr
