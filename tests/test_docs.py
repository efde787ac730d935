"""The pages tell the truth: links, commands, code, examples and generated parts, in docs/ and
README."""

import ast
import importlib
import importlib.util
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from overrefusal_po.attacks.logged import read_rows
from overrefusal_po.cli import app
from overrefusal_po.evaluate.labels import read_labels
from overrefusal_po.judges._refusal_rules import OPENING_RULES, SECOND_SPEAKER, WHOLE_RULES
from overrefusal_po.judges.refusal import judge_text
from overrefusal_po.pairs.files import read_pairs
from overrefusal_po.prompts import read_pairs as read_source_pairs
from overrefusal_po.prompts import read_responses as read_unpaired
from overrefusal_po.prompts import read_source, read_triples
from overrefusal_po.recipe.load import load_recipe
from overrefusal_po.recipe.sections import DertaData, PairsData
from overrefusal_po.train.asked import asked_prompts

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "overrefusal_po"
DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [*DOCS, ROOT / "README.md", ROOT / "CHANGELOG.md"]
RUN_FILES = ("train", "curate", "fit", "evaluate", "run", "report")
LAUNCHERS = ("overrefusal-po ", "accelerate launch ", "torchrun ", "wandb sweep ")
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)


def named(page: Path) -> str:
    """A page's name in the list of tests."""
    return page.name


def blocks(page: Path, kind: str) -> list[str]:
    """The fenced blocks of a page that are of a kind; shell commands have none."""
    return [text for found, text in BLOCK.findall(page.read_text()) if found == kind]


def shell_lines(page: Path) -> Iterator[str]:
    """The commands of a page, without comments and without variables set before them; and all that
    stands as code in its text."""
    for block in blocks(page, ""):
        for line in block.replace("\\\n", " ").splitlines():
            command = line.partition("  #")[0].strip()
            yield re.sub(r"^(\w+=\S+ )+", "", command)
    yield from re.findall(r"`([^`\n]+)`", BLOCK.sub("", page.read_text()))


COMMANDS = [
    pytest.param(line, id=f"{page.name}-{n}")
    for page in PAGES
    for n, line in enumerate(shell_lines(page))
    if line.startswith(LAUNCHERS)
]


# --- commands and code ----------------------------------------------------------------------------


def test_the_pages_show_recipes_being_run() -> None:
    assert sum(".yaml" in str(command.values[0]) for command in COMMANDS) >= 10


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_names_recipes_that_load_and_subcommands_that_exist(
    command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The recipe loads with the overrides behind it: what `check` would say, whatever launches
    it."""
    monkeypatch.chdir(ROOT)
    words = shlex.split(command)
    configs = {i + 1 for i, word in enumerate(words) if word == "--config_file"}
    places = (i for i, word in enumerate(words) if word.endswith(".yaml") and i not in configs)
    place = next(places, None)
    if words[0] == "wandb":
        assert yaml.safe_load(Path(words[2]).read_text())["program"]
    elif place is not None:
        load_recipe(words[place], [w for w in words[place + 1 :] if w not in ("--data", "--all")])
    elif words[0] == "overrefusal-po" and not words[1].isupper():  # RECIPE stands for any
        known = {
            c.name or (c.callback.__name__ if c.callback else "") for c in app.registered_commands
        }
        assert words[1] in known | {"--version"}


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_python_parses_and_its_imports_exist(page: Path) -> None:
    for block in blocks(page, "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom):
                module = importlib.import_module(str(node.module))
                for alias in node.names:
                    assert hasattr(module, alias.name), f"{node.module} has no {alias.name}"


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_yaml_parses(page: Path) -> None:
    for block in blocks(page, "yaml"):
        assert isinstance(yaml.safe_load(block), dict), block


# --- links ----------------------------------------------------------------------------------------


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as mkdocs and GitHub make them."""
    text = BLOCK.sub("", page.read_text())
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", h).strip().lower()) for h in headings}


def links(page: Path) -> list[str]:
    """The targets of a page's links that lead to files here."""
    text = BLOCK.sub("", page.read_text())
    return re.findall(r"\]\((?!\w+:)([^)\s]+)\)", text)


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_link_leads_to_a_file_and_a_heading(page: Path) -> None:
    for link in links(page):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), f"{link}: no such heading"


def test_a_broken_anchor_would_be_seen() -> None:
    page = ROOT / "docs" / "recipe.md"
    assert "methods" in anchors(page)
    assert "data-for-dpo-orpo-cpo-kto" in anchors(page)
    assert "no-such-heading" not in anchors(page)


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_files_that_a_page_names_exist(page: Path) -> None:
    """`pairs/files.py`, `recipes/dpo.yaml`, `tests/x.py`: a file of the package or of the
    repository."""
    text = page.read_text()
    for name in re.findall(r"`((?:[\w.-]+/)+[\w.-]+\.(?:py|yaml|sbatch|md|json))`", text):
        assert (SOURCE / name).exists() or (ROOT / name).exists() or name in text_examples(), name


def text_examples() -> set[str]:
    """Files of the pages that stand for a user's own."""
    return {"my_plugs/my_source.py"}


def test_the_menu_of_the_site_has_every_page() -> None:
    site = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    listed = [page for entry in site["nav"] for page in entry.values()]
    assert {p.name for p in DOCS} <= set(listed)


# --- generated parts ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def write_docs() -> ModuleType:
    """scripts/write_docs.py as a module."""
    spec = importlib.util.spec_from_file_location("write_docs", ROOT / "scripts/write_docs.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_generated_parts_are_fresh(write_docs: ModuleType) -> None:
    stale = [page.name for page in write_docs.stale_pages(ROOT / "docs")]
    assert not stale, f"{stale} are stale. Run: python scripts/write_docs.py"


def test_a_stale_part_is_seen_and_hand_written_text_is_kept(write_docs: ModuleType) -> None:
    text = "Before.\n<!-- begin methods -->\nold\n<!-- end methods -->\nAfter.\n"
    new = write_docs.filled(text)
    assert new.startswith("Before.\n")
    assert new.endswith("\nAfter.\n")
    assert "old" not in new
    assert "| `dpo` |" in new


def test_a_part_that_nobody_makes_is_an_error(write_docs: ModuleType) -> None:
    with pytest.raises(ValueError, match="no part 'other'"):
        write_docs.filled("<!-- begin other -->\n<!-- end other -->\n")


def test_pages_are_not_written_from_another_package(tmp_path: Path) -> None:
    """A checkout's script with the package of another one: the keys may be others."""
    shutil.copytree(ROOT / "scripts", tmp_path / "scripts")
    command = [sys.executable, str(tmp_path / "scripts" / "write_docs.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert f"is imported, not {tmp_path / 'src' / 'overrefusal_po'}. Set PYTHONPATH=" in done.stdout


def test_the_tree_has_every_module_and_every_recipe(write_docs: ModuleType) -> None:
    tree = write_docs.tree()
    for file in SOURCE.rglob("*.py"):
        assert f" {file.name} " in tree or file.name == "__init__.py", file.name
    for file in (ROOT / "recipes").rglob("*.yaml"):
        assert str(file.relative_to(ROOT / "recipes")) in tree


def test_the_script_imports_no_torch() -> None:
    code = "import sys; sys.path.insert(0, 'scripts'); import write_docs as w\n"
    code += "[w.PARTS[name]() for name in w.PARTS]\nprint({'torch', 'trl'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "set()", done.stderr


def test_types_and_limits_in_words(write_docs: ModuleType) -> None:
    from overrefusal_po.recipe.bounds import Gate
    from overrefusal_po.recipe.sections import Generation, Rejects

    rows = {
        section: list(write_docs.key_rows(section, {})) for section in (Gate, Generation, Rejects)
    }
    assert any("| number, above 0, at most 1 | `1.0` |" in row for row in rows[Generation])
    assert any("| number, 0 to 1, or null | `null` |" in row for row in rows[Gate])
    assert any("| list; each: number 0 to 1 | `[]` |" in row for row in rows[Rejects])


def test_a_list_under_a_key_keeps_a_line_for_each_point(write_docs: ModuleType) -> None:
    text = "What is\n    written.\n\n    - `a`: one\n      thing.\n    - `b`: None: two."
    said = "What is written.<br>- `a`: one thing.<br>- `b`: null: two."
    assert write_docs.in_one_cell(text) == said


def test_what_stands_in_angle_brackets_is_shown(write_docs: ModuleType) -> None:
    assert write_docs.cell("runs/<key> and `a <b>`<br>x|y") == "runs/&lt;key> and `a <b>`<br>x\\|y"


# --- examples -------------------------------------------------------------------------------------


def examples(page: Path, mark: str) -> list[tuple[str, str]]:
    """[(what, text of the block)] of the blocks behind `<!-- mark: what -->`."""
    return re.findall(rf"<!-- {mark}: (\w+) -->\n```\w*\n(.*?)```", page.read_text(), re.DOTALL)


def sample_with_key(file: Path) -> Any:
    """A blinded sample's row, its key beside it."""
    (key,) = [text for what, text in examples(ROOT / "docs/files.md", "reads") if what == "key"]
    file.with_suffix(".key.jsonl").write_text(key)
    return read_labels(file)


def read_responses(file: Path) -> list[str]:
    """What `overrefusal-po judge refusal FILE` prints."""
    command = [sys.executable, "-m", "overrefusal_po", "judge", "refusal", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    page = (ROOT / "docs/files.md").read_text()
    assert f"`{done.stdout.strip()}`" in page
    return done.stdout.splitlines()


READERS: dict[str, Callable[[Path], Any]] = {
    "pairs": read_pairs,
    "prompts": lambda file: read_source(str(file), None),
    "triples": lambda file: read_triples(str(file), None, opener="Sorry"),
    "trees": lambda file: read_source_pairs({"name": "steptree", "path": str(file)}, None),
    "unpaired": lambda file: read_unpaired(str(file), None),
    "responses": read_responses,
    "labels": read_labels,
    "sample": sample_with_key,
    "key": lambda file: [json.loads(file.read_text())],
    "logged": lambda file: list(read_rows(str(file), "").values()),
}
EXAMPLES = examples(ROOT / "docs/files.md", "reads")


@pytest.mark.parametrize(("what", "line"), EXAMPLES, ids=[w for w, _ in EXAMPLES])
def test_every_example_line_is_read(what: str, line: str, tmp_path: Path) -> None:
    file = tmp_path / "example.jsonl"
    file.write_text(line)
    (row,) = READERS[what](file)
    prompt = getattr(row, "prompt", row)
    if hasattr(prompt, "text"):
        assert prompt.text.endswith("?")
    if what == "pairs":
        assert (row.chosen, row.rejected) == (
            "Use kill and the number of the process.",
            "Sorry, I can't help with killing.",
        )


def test_every_reader_has_an_example() -> None:
    assert {what for what, _ in EXAMPLES} == READERS.keys()


def test_the_mapped_columns_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    of_pairs, block, of_asked = blocks(ROOT / "docs/files.md", "yaml")
    monkeypatch.chdir(tmp_path)
    Path("pairs.csv").write_text("asked,better,worse\nHow?,So.,No.\n")
    section = PairsData.model_validate(yaml.safe_load(of_pairs)["data"])
    (pair,) = read_source_pairs(section.pairs, None)
    assert (pair.prompt.text, pair.chosen, pair.rejected) == ("How?", "So.", "No.")
    rows = "question,tag,language\nWhat is this?,fine,en\nUnd das?,bad,de\n"
    Path("questions.csv").write_text(rows)
    (spec,) = yaml.safe_load(block)["data"]["sets"]
    assert [(p.text, p.kind) for p in read_source(spec, None)] == [("What is this?", "benign")]
    values = yaml.safe_load(of_asked)["data"]
    Path("harmfulqa.csv").write_text("question,topic\nRob a train?,theft\n")
    Path("my-prompts.jsonl").write_text('{"prompt": "Rob a bank."}\n')
    values["ask"][0]["paths"] = ["harmfulqa.csv"]  # in place of the hub
    asked = asked_prompts(DertaData.model_validate(values))
    assert [p.text for p in asked[-2:]] == ["Rob a train?", "Rob a bank."]
    assert {p.reference for p in asked[-2:]} == {values["safe_lead"]}


def constants(file: Path) -> Iterator[str]:
    """The texts in a module that are a file's name and nothing else."""
    for node in ast.walk(ast.parse(file.read_text())):
        text = node.value if isinstance(node, ast.Constant) else None
        if isinstance(text, str) and re.fullmatch(r"[\w.]+\.(jsonl?|yaml|html|png)", text):
            yield text


def test_the_page_of_files_names_every_file_of_a_run_folder() -> None:
    page = (ROOT / "docs/files.md").read_text()
    modules = [f for room in RUN_FILES for f in (SOURCE / room).glob("*.py")]
    found = {name for file in [*modules, SOURCE / "pipeline.py"] for name in constants(file)}
    others = {
        "failed.jsonl": "completions.failed.jsonl",
        "ledger.jsonl": "completions.ledger.jsonl",
        "tally.json": "completions.tally.json",
        "config.json": "`model/`",
        "adapter_config.json": "`adapter/`",
        "pytorch_model.bin.index.json": "`model/`",
        "trainer_state.json": "`checkpoints/`",
        "hashes.json": "`checkpoints/`",
        ".key.jsonl": "to_label.key.jsonl",
    }
    assert len(found) > 15
    for name in found - {"starter.jsonl"}:  # which is in the package
        assert others.get(name, name) in page, f"docs/files.md does not name {name}"


def judged_rows() -> list[tuple[str, str, str]]:
    """(class, asked, said) of the examples of the page on measuring."""
    text = (ROOT / "docs/measuring.md").read_text()
    tables = re.findall(r"<!-- judged -->\n\|.*\n\|[-|]*\n((?:\|.*\n)+)", text)
    rows = [line.strip("|\n ").split(" | ") for table in tables for line in table.splitlines()]
    return [(row[0], row[1], row[2]) for row in rows]


@pytest.mark.parametrize(("named_class", "asked", "said"), judged_rows())
def test_every_example_of_a_refusal_has_its_class(named_class: str, asked: str, said: str) -> None:
    found = judge_text(said, asked)
    assert named_class == found.refusal + (", degenerate" if found.degenerate else "")


def test_the_page_names_each_rule_of_the_judge() -> None:
    text = (ROOT / "docs/measuring.md").read_text()
    table = text[text.index("### What decided") : text.index("## Judges")]
    rules = {"decline", *OPENING_RULES, *WHOLE_RULES, SECOND_SPEAKER, "sorry", "answer", "unread"}
    assert set(re.findall(r"^\| `([a-z ]+)` \|", table, re.MULTILINE)) == rules


def test_each_class_has_an_example() -> None:
    classes = {row[0] for row in judged_rows()}
    assert {"full", "partial", "none", "none, degenerate"} <= classes
