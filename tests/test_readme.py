"""The README tells the truth: its commands parse, its recipes are right, its tree is the tree."""

import ast
import re
import shlex
from pathlib import Path

import pytest

from overrefusal_po.cli import main
from overrefusal_po.recipe.load import load_recipe

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", TEXT, re.DOTALL)
SHELL = [
    line.partition("  #")[0].strip()
    for kind, block in BLOCKS
    if not kind
    for line in block.replace("\\\n", " ").splitlines()
]
LAUNCHERS = (
    "overrefusal-po ",
    "accelerate launch ",
    "torchrun ",
    "python -m torch.distributed.run ",
)
RUNS = [line for line in SHELL if line.startswith(LAUNCHERS) and ".yaml" in line]


def test_the_readme_shows_recipes_being_run():
    assert len(RUNS) >= 5


@pytest.mark.parametrize("command", RUNS)
def test_every_recipe_command_in_the_readme_is_right(command, monkeypatch):
    """The recipe loads with the overrides behind it: what `check` would say, whatever launches
    it."""
    monkeypatch.chdir(ROOT)
    words = shlex.split(command)
    place = next(i for i, word in enumerate(words) if word.endswith(".yaml"))
    overrides = [word for word in words[place + 1 :] if word != "--data"]
    load_recipe(words[place], overrides)


def test_the_commands_that_need_no_model_run(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    for command in ("overrefusal-po list", f"overrefusal-po init {tmp_path}"):
        assert command.split()[1] in TEXT
        with pytest.raises(SystemExit) as end:
            main(shlex.split(command)[1:])
        assert end.value.code in (0, None)
    assert "dpo" in capsys.readouterr().out


def test_the_two_commands_are_targets_of_the_makefile():
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)", TEXT, re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)


def test_python_in_the_readme_parses_and_its_imports_exist():
    for block in (block for kind, block in BLOCKS if kind == "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom):
                module = __import__(str(node.module), fromlist=[a.name for a in node.names])
                assert all(hasattr(module, alias.name) for alias in node.names)


def test_the_tree_names_every_module_and_every_linked_file_exists():
    tree = next(block for _, block in BLOCKS if block.startswith("src/overrefusal_po/"))
    for file in (ROOT / "src" / "overrefusal_po").glob("*.py"):
        assert file.name in tree or file.name == "__main__.py", file.name
    for link in re.findall(r"\]\((?!http)([^)]+)\)", TEXT):
        assert (ROOT / link).exists(), link


def test_no_figure_is_still_to_be_filled_in():
    for file in ("README.md", "benchmarks/RESULTS.md", "CHANGELOG.md"):
        text = (ROOT / file).read_text()
        assert not re.search(r"PLACEHOLDER|^(STORY|TRIED)$|TODO", text, re.MULTILINE), file
