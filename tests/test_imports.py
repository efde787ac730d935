"""Arrows go one way: the imports of every module, read with `ast`, against the order of the house plan."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import overrefusal_po

SOURCE = Path(overrefusal_po.__file__).parent
FLOORS = [
    {"records"},
    {
        "fields",
        "intervals",
        "labels",
        "shards",
        "shortcuts",
        "hygiene",
        "pair_files",
        "summary",
        "apart",
        "interrupts",
        "sharding",
        "kto",
        "pair_attention",
    },
    {"recipe", "corrections", "shared_prefix", "openai_setup"},
    {"derta", "pairs", "metrics", "models", "chat", "runs", "plugins", "engines", "judges", "sources", "attacks"}
    | {"reference_store", "orpo", "opening"},
    {"derta_tree", "lengths"},
    {"pair_rows"},
    {
        "trainers",
        "generate",
        "lint",
        "selectors",
        "quotas",
        "certificates",
        "breakdowns",
        "selection",
        "capability",
        "gate",
        "pictures",
    },
    {"trackers", "memory"},
    {"overgenerate"},
    {"rules", "training_data"},
    {"curate", "train", "evaluate"},
    {"pipeline", "checks", "report", "card"},
    {"cli"},
    {"__init__", "__main__"},
]
"""From the ground up: a module imports from floors below its own."""

DOORS = {("derta", "chat"), ("pairs", "chat")}
"""Imports within one floor that are meant."""

PLUG_ROOMS = ("sources", "attacks", "engines", "judges")
PLUG_MAY_IMPORT = {"records", "fields", "models", "chat", "openai_setup"}
LIGHT = [
    "report",
    "metrics",
    "intervals",
    "labels",
    "corrections",
    "certificates",
    "breakdowns",
    "gate",
    "lint",
    "hygiene",
    "apart",
    "shortcuts",
    "pair_files",
    "summary",
    "pictures",
    "card",
    "pairs",
    "recipe",
    "fields",
    "openai_setup",
    "records",
    "plugins",
    "runs",
    "cli",
    "__init__",
]
HEAVY = {"torch", "transformers", "trl", "peft", "accelerate", "datasets"}
MODULES = sorted(p for p in SOURCE.rglob("*.py"))


def name_of(path: Path) -> str:
    """`chat` for src/overrefusal_po/chat.py, `judges.refusal` for a plug file."""
    return ".".join(path.relative_to(SOURCE).with_suffix("").parts)


def imported(tree: ast.AST) -> Iterator[str]:
    """Full dotted names of what a tree imports, wherever in it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, "imports are absolute"
            if node.module == "overrefusal_po" or node.module.removeprefix("overrefusal_po.") in PLUG_ROOMS:
                yield from (f"{node.module}.{alias.name}" for alias in node.names)
            else:
                yield node.module


def own_imports(path: Path) -> set[str]:
    """What a module imports of ours, without the package's name: {`chat`, `judges.refusal`}."""
    names = set(imported(ast.parse(path.read_text())))
    return {n.removeprefix("overrefusal_po.") for n in names if n.startswith("overrefusal_po.")}


def floor(name: str) -> int:
    """The floor of a module; StopIteration is a module that the plan does not know."""
    return next(number for number, modules in enumerate(FLOORS) if name.partition(".")[0] in modules)


def at_import(tree: ast.Module) -> ast.Module:
    """What runs when a module is imported: function bodies and TYPE_CHECKING blocks are left out."""
    kept: list[ast.stmt] = []
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) or (
            isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        ):
            continue
        kept.append(node)
    return ast.Module(kept, [])


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_every_module_stands_on_a_floor_of_the_plan(path: Path) -> None:
    assert any(name_of(path).partition(".")[0] in modules for modules in FLOORS)


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_no_import_runs_up(path: Path) -> None:
    name = name_of(path)
    for target in own_imports(path):
        if name.partition(".")[0] in PLUG_ROOMS or (name, target) in DOORS:
            continue
        assert floor(target) < floor(name), f"{name} imports {target}, which does not stand below it"


@pytest.mark.parametrize("path", [p for p in MODULES if p.parent.name in PLUG_ROOMS], ids=name_of)
def test_plug_files_import_no_stage_and_no_other_room(path: Path) -> None:
    room = path.parent.name
    for target in own_imports(path):
        assert target in PLUG_MAY_IMPORT or target.startswith(f"{room}."), f"{name_of(path)} imports {target}"


def test_an_arrow_that_runs_up_would_be_seen(tmp_path: Path) -> None:
    upward = tmp_path / "chat.py"
    upward.write_text("def f():\n    from overrefusal_po import cli\n    from overrefusal_po.train import train\n")
    assert own_imports(upward) == {"cli", "train"}
    assert floor("cli") > floor("chat") and floor("train") > floor("chat")


def test_report_is_imported_by_the_cli_alone() -> None:
    assert [name_of(p) for p in MODULES if "report" in own_imports(p)] == ["cli"]


@pytest.mark.parametrize("name", LIGHT)
def test_light_modules_import_nothing_heavy_at_module_level(name: str) -> None:
    tree = at_import(ast.parse((SOURCE / f"{name}.py").read_text()))
    assert not {n.partition(".")[0] for n in imported(tree)} & HEAVY


@pytest.mark.parametrize("name", ["report", "metrics", "pairs", "recipe", "records", "plugins"])
def test_these_never_import_torch_transformers_or_trl(name: str) -> None:
    tree = ast.parse((SOURCE / f"{name}.py").read_text())
    assert not {n.partition(".")[0] for n in imported(tree)} & {"torch", "transformers", "trl"}


def test_importing_the_package_recipe_and_cli_leaves_torch_out() -> None:
    code = (
        "import sys, overrefusal_po, overrefusal_po.recipe, overrefusal_po.cli\n"
        f"print(sorted(set({sorted(HEAVY)!r}) & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_light_modules_load_nothing_heavy_when_they_are_imported() -> None:
    names = ", ".join(f"overrefusal_po.{n}" for n in LIGHT if n != "__init__")
    code = f"import sys, {names}\nprint(sorted({{'torch', 'transformers', 'trl'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_our_source_never_spells_a_setting_of_dpo(path: Path) -> None:
    """TRL's settings belong to TRL: no variable, argument, attribute or key of ours is called beta."""
    for node in ast.walk(ast.parse(path.read_text())):
        if name_of(path) == "orpo" and isinstance(node, ast.Attribute) and ast.unparse(node) == "self.beta":
            continue  # the loss that we own reads what TRL's trainer holds
        spelled = {
            getattr(node, "id", None),
            getattr(node, "arg", None),
            getattr(node, "attr", None),
            node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None,
        }
        assert "beta" not in spelled, f"{name_of(path)}, line {getattr(node, 'lineno', '?')}"
