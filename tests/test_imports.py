"""Arrows go one way: every import, read with `ast`, against the floors of docs/architecture.md."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import overrefusal_po

SOURCE = Path(overrefusal_po.__file__).parent
PAGE = Path(__file__).parents[1] / "docs" / "architecture.md"
PLUG_ROOMS = ("sources", "attacks", "engines", "judges", "remedies")
TYPE_ROOMS = ("sources", "attacks", "judges", "remedies")
"""Rooms whose own file any room may import for its types."""
HEAVY = {"torch", "transformers", "trl", "peft", "accelerate", "datasets"}
LIGHT_ROOMS = ("recipe", "pairs", "evaluate", "report", "sources", "attacks", "remedies")
LIGHT = {
    "records",
    "plugins",
    "prompts",
    "cli",
    "checks",
    "file_checks",
    "pipeline",
    "references",
    "stage_recipes",
    "more_rounds",
    "stages",
    "__init__",
    "run.folder",
}
MODULES = sorted(SOURCE.rglob("*.py"))


def floors() -> list[set[str]]:
    """The floors that the page lists, from the top."""
    lines = re.findall(r"^\d+\. (.*)$", PAGE.read_text(), re.MULTILINE)
    return [set(re.findall(r"`([\w]+)`", line)) for line in lines]


FLOORS = floors()


def name_of(path: Path) -> str:
    """`train.dpo` for src/overrefusal_po/train/dpo.py, `train` for its __init__."""
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return ".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts)


NAMES = {name_of(path): path for path in MODULES}


def imported(tree: ast.AST) -> Iterator[str]:
    """Full dotted names of the modules that a tree imports, anywhere in it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, "imports are absolute"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                is_module = full.removeprefix("overrefusal_po.") in NAMES
                yield full if is_module else node.module


def own_imports(path: Path) -> set[str]:
    """What a module imports of ours, without the package's name: {`model.chat`,
    `judges.refusal`}."""
    names = set(imported(ast.parse(path.read_text())))
    return {n.removeprefix("overrefusal_po.") for n in names if n.startswith("overrefusal_po.")}


def room(name: str) -> str:
    """The room of a module; a module of the front or between rooms is its own."""
    return name.partition(".")[0]


def floor(name: str) -> int:
    """The floor of a module, 0 at the top; StopIteration if the page does not list its room."""
    return next(number for number, rooms in enumerate(FLOORS) if room(name) in rooms)


def at_import(tree: ast.Module) -> ast.Module:
    """What runs at import: function bodies and TYPE_CHECKING blocks are left out."""
    kept: list[ast.stmt] = []
    for node in tree.body:
        checked = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        if not (isinstance(node, ast.FunctionDef) or checked):
            kept.append(node)
    return ast.Module(kept, [])


@pytest.mark.parametrize("name", NAMES)
def test_every_module_stands_on_a_floor_of_the_page(name: str) -> None:
    assert any(room(name) in rooms for rooms in FLOORS)


def test_the_page_lists_no_room_that_is_not_there() -> None:
    there = {room(name) for name in NAMES}
    assert set().union(*FLOORS) == there


@pytest.mark.parametrize("name", NAMES)
def test_no_import_runs_up_or_to_another_room_of_the_same_floor(name: str) -> None:
    for target in own_imports(NAMES[name]) - set(TYPE_ROOMS):
        down = floor(target) > floor(name)
        front = not floor(target) and not floor(name)
        assert down or front or room(target) == room(name), f"{name} imports {target}, not below"


@pytest.mark.parametrize("name", TYPE_ROOMS)
def test_a_plug_rooms_own_file_may_be_imported_anywhere_since_it_imports_no_room(name: str) -> None:
    """It says what a plug of the room is: protocols over records, and of remedies over models."""
    model = {"model.remedy", "model.chat"} if name == "remedies" else set()
    assert own_imports(NAMES[name]) <= {"records"} | model


FRONT_ORDER = (
    "api",
    "checks",
    "file_checks",
    "references",
    "stage_recipes",
    "more_rounds",
    "pipeline",
    "stages",
    "cli",
    "__main__",
    "__init__",
)
"""A module of the front imports from those before it."""


@pytest.mark.parametrize("of", sorted({room(name) for name in NAMES if "." in name}))
def test_no_cycle_inside_a_room(of: str) -> None:
    graph = {name: own_imports(path) for name, path in NAMES.items() if room(name) == of}
    done: set[str] = set()
    while ready := {n for n in graph if n not in done and not (graph[n] & graph.keys()) - done}:
        done |= ready
    assert done == graph.keys(), f"a cycle among {sorted(graph.keys() - done)}"


def test_the_front_has_no_cycle() -> None:
    assert set(FRONT_ORDER) == FLOORS[0]
    for name in FRONT_ORDER:
        for target in own_imports(NAMES[name]) & FLOORS[0]:
            assert FRONT_ORDER.index(target) < FRONT_ORDER.index(name), f"{name} imports {target}"


@pytest.mark.parametrize("path", [p for p in MODULES if p.parent.name in PLUG_ROOMS], ids=name_of)
def test_plug_files_import_no_stage_and_no_other_plug(path: Path) -> None:
    own = path.parent.name
    for target in own_imports(path):
        other_plug = room(target) in PLUG_ROOMS and room(target) != own
        shared = target.rpartition(".")[2].startswith("_") or target in PLUG_ROOMS
        assert not other_plug or shared, f"{name_of(path)} imports {target}"


def test_an_arrow_that_runs_up_would_be_seen(tmp_path: Path) -> None:
    upward = tmp_path / "chat.py"
    upward.write_text(
        "def f():\n    from overrefusal_po import cli\n    from overrefusal_po.train.stage import "
        "train\n"
    )
    assert own_imports(upward) == {"cli", "train.stage"}
    assert floor("cli") < floor("train.stage") < floor("model.chat")


def is_light(name: str) -> bool:
    """Whether checking a recipe or making a page imports this module."""
    return name in LIGHT or room(name) in LIGHT_ROOMS


@pytest.mark.parametrize("name", [name for name in NAMES if is_light(name)])
def test_light_modules_import_nothing_heavy_at_module_level(name: str) -> None:
    tree = at_import(ast.parse(NAMES[name].read_text()))
    assert not {n.partition(".")[0] for n in imported(tree)} & HEAVY


def test_the_light_modules_load_nothing_heavy_when_they_are_imported() -> None:
    names = ", ".join(f"overrefusal_po.{n}" for n in NAMES if is_light(n) and n != "__init__")
    code = f"import sys, {names}\nprint(sorted(set({sorted(HEAVY)!r}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", NAMES)
def test_our_source_never_spells_a_setting_of_dpo(name: str) -> None:
    """TRL's settings belong to TRL: no variable, argument, attribute or key of ours is `beta`."""
    for node in ast.walk(ast.parse(NAMES[name].read_text())):
        reads = isinstance(node, ast.Attribute) and ast.unparse(node) == "self.beta"
        if name in ("train.orpo", "train.cpo") and reads:
            continue  # the loss that we own reads what TRL's trainer holds
        spelled = {
            getattr(node, "id", None),
            getattr(node, "arg", None),
            getattr(node, "attr", None),
            node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None,
        }
        assert "beta" not in spelled, f"{name}, line {getattr(node, 'lineno', '?')}"
