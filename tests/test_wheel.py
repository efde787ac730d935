"""The wheel, built for real, holds what a user needs; `init` copies every recipe."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from overrefusal_po.cli import init

ROOT = Path(__file__).parents[1]
PACKAGE, RECIPES = ROOT / "src" / "overrefusal_po", ROOT / "recipes"


def files_in(folder: Path) -> set[str]:
    """Every file below a folder, but what Python leaves there."""
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {str(p.relative_to(folder)) for p in paths if "__pycache__" not in p.parts}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """The names of the files in the wheel."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as packed:
        return set(packed.namelist())


def test_every_file_of_the_package_is_in_the_wheel(wheel: set[str]) -> None:
    assert {f"overrefusal_po/{name}" for name in files_in(PACKAGE)} <= wheel


def test_every_recipe_is_in_the_wheel(wheel: set[str]) -> None:
    assert {f"overrefusal_po/recipes/{name}" for name in files_in(RECIPES)} <= wheel


def test_nothing_else_is_in_the_wheel(wheel: set[str]) -> None:
    others = {name for name in wheel if not name.startswith("overrefusal_po/")}
    assert all(".dist-info/" in name for name in others)


def test_init_copies_every_recipe(tmp_path: Path) -> None:
    init(tmp_path)
    assert files_in(tmp_path / "recipes") == files_in(RECIPES)
