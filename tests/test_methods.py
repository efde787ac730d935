"""recipe/methods.py and train/method.py: a method is one row and one file, also of another
package."""

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import launches
import pytest
import yaml
from conftest import Style

import overrefusal_po
from overrefusal_po.cli import main
from overrefusal_po.recipe.methods import METHODS, Method, all_methods, find_method
from overrefusal_po.recipe.sections import PairsData
from overrefusal_po.records import PreferencePair, Prompt, write_jsonl
from overrefusal_po.report.training import method_words
from overrefusal_po.train.method import NEEDED, method_module

SOURCE = Path(overrefusal_po.__file__).parent

SETTINGS = '''
from dataclasses import dataclass
from trl import DPOConfig


@dataclass
class TiltedConfig(DPOConfig):
    """DPO with a margin."""

    tilt: float = 0.25
'''
METHOD = """
from overrefusal_po.recipe.methods import Method
from overrefusal_po.recipe.sections import PairsData


def check_tilt(settings):
    if settings["tilt"] > 1:
        raise ValueError("trainer.tilt is above 1. Give 1 or less.")


METHOD = Method(
    name="tilted",
    title="DPO that leans to one side",
    config="PACKAGE.settings.TiltedConfig",
    data=PairsData,
    module="PACKAGE.tilted",
    needs_reference=True,
    check=check_tilt,
)
"""
FUNCTIONS = """
from pathlib import Path
from overrefusal_po.train.preference import prepare, read


def recipe_trainer(model, prepared, *, recipe, args, template, peft_config):
    from overrefusal_po.train.dpo import dpo_trainer

    trainer = dpo_trainer(model, prepared, args=args, template=template, peft_config=peft_config)
    Path("tilted.txt").write_text(f"{type(args).__name__} {args.tilt} {len(prepared.rows)}")
    return trainer
"""


def package(folder: Path, name: str, tilted: str = METHOD + FUNCTIONS) -> Path:
    """A package with a method's file in `folder`, which then has to be on the path."""
    (folder / name).mkdir(parents=True)
    (folder / name / "__init__.py").write_text("")
    (folder / name / "settings.py").write_text(SETTINGS)
    (folder / name / "tilted.py").write_text(tilted.replace("PACKAGE", name))
    return folder


def installed(folder: Path, name: str, target: str) -> Path:
    """`folder` with what pip writes about an installed package that brings the method `tilted`."""
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[overrefusal_po.methods]\ntilted = {target}\n")
    return folder


@pytest.fixture
def recipe(styles: dict[str, Style], tmp_path: Path) -> dict[str, Any]:
    """A training of one step by `method`, which a test sets."""
    rows = [
        PreferencePair(
            id=str(n),
            prompt=Prompt.of(f"How do I fold {thing}?", kind="benign"),
            chosen="Fold it in half and press it.",
            rejected="Sorry, I can't help with that.",
        )
        for n, thing in enumerate(("a paper fox", "a letter", "a shirt"))
    ]
    file = write_jsonl(tmp_path / "pairs.jsonl", rows)
    return {
        "task": "train",
        "model": {"model_name_or_path": str(styles["llama"].folder), "dtype": "float32"},
        "data": {"pairs": str(file), "allow_no_anchor": True},
        "trainer": {
            "use_cpu": True,
            "max_steps": 1,
            "max_length": 256,
            "save_strategy": "no",
            "report_to": "none",
        },
        "run_dir": "here",
    }


def written(folder: Path, recipe: dict[str, Any], method: str, **trainer: Any) -> str:
    """The path of the recipe as a file, with its method and more trainer keys."""
    body = {**recipe, "method": method, "trainer": {**recipe["trainer"], **trainer}}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(body))
    return str(folder / "recipe.yaml")


def command(folder: Path, path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, with `path` on PYTHONPATH."""
    pythonpath = os.pathsep.join([str(path), *filter(None, [os.environ.get("PYTHONPATH")])])
    return launches.run(
        [sys.executable, "-m", "overrefusal_po", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, "PYTHONPATH": pythonpath, "COLUMNS": "120"},
    )


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """(exit code, what was printed, the errors) of the command in this process."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        main([*arguments])
    return int(end.value.code or 0), *capsys.readouterr()


# ------------------------------------------------------------------------------ methods of others


@pytest.mark.slow
def test_a_module_of_the_users_own_is_checked_and_trained_with(
    recipe: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Checked in this process, and trained with in one of its own that finds it by PYTHONPATH."""
    path = package(tmp_path / "path", "own_module")
    monkeypatch.syspath_prepend(str(path))
    monkeypatch.chdir(tmp_path)
    code, out, err = said(capsys, "check", written(tmp_path, recipe, "own_module.tilted"), "--data")
    assert code == 0 and "3 pairs, longest row" in out, err
    for trainer, sentence in (
        ({"tillt": 1.0}, "tillt is not a known key of TiltedConfig. Did you mean tilt?"),
        ({"tilt": "wide"}, "trainer.tilt is 'wide'"),
        ({"tilt": 2.0}, "trainer.tilt is above 1. Give 1 or less."),
    ):
        wrong = written(tmp_path, recipe, "own_module.tilted", **trainer)
        code, _, err = said(capsys, "check", wrong)
        assert code == 2 and sentence in " ".join(err.split()), err
    trained = command(tmp_path, path, written(tmp_path, recipe, "own_module.tilted", tilt=0.75))
    assert trained.returncode == 0, trained.stderr[-3000:]
    assert "steps: 1" in trained.stdout
    assert (tmp_path / "tilted.txt").read_text() == "TiltedConfig 0.75 3"
    assert (tmp_path / "here" / "model" / "config.json").is_file()
    assert json.loads((tmp_path / "here" / "status.json").read_text())["state"] == "done"


@pytest.mark.slow
def test_a_method_of_an_installed_package_is_listed_and_trained_with_by_its_name(
    recipe: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = package(tmp_path / "site", "leaning")
    installed(path, "leaning", "leaning.tilted:METHOD")
    monkeypatch.syspath_prepend(str(path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    code, out, err = said(capsys, "list")
    assert code == 0, err
    rows = [line.split(maxsplit=2) for line in out.splitlines()]
    assert ["method", "tilted", "DPO that leans to one side"] in [
        [cell.strip() for cell in row] for row in rows
    ]
    assert {row[1] for row in rows if row[0] == "method"} == {*METHODS, "tilted"}
    code, _, err = said(capsys, written(tmp_path, recipe, "tilted"))
    assert code == 0, err
    assert (tmp_path / "tilted.txt").read_text() == "TiltedConfig 0.25 3"


def test_an_installed_package_is_found_by_name_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = package(tmp_path, "found_by_name")
    installed(path, "found_by_name", "found_by_name.tilted:METHOD")
    with pytest.raises(
        ValueError, match="allowed is one of sft, derta, dpo, orpo, cpo, kto, dro, or the"
    ):
        find_method("tilted")
    monkeypatch.syspath_prepend(str(path))
    row = find_method("tilted")
    assert isinstance(row, Method) and row.data is PairsData and row.needs_reference
    assert all_methods() == {**METHODS, "tilted": row}
    assert find_method("found_by_name.tilted") is row
    with pytest.raises(ValueError, match=r"dro, tilted, or the dotted .* Did you mean tilted\?"):
        find_method("tiltd")


# ------------------------------------------------------------------------------------------ faults

FAULTS = {
    "no such name": ("dppo", "method is 'dppo'; allowed is one of sft, .* Did you mean dpo?"),
    "no such module": ("gone_package.tilted", "'gone_package.tilted' cannot be imported"),
    "a relative name": (".tilted", "method is '.tilted'; allowed is one of"),
    "dots alone": ("..", "method is '..'; allowed is one of"),
    "a module without a METHOD": ("bare_own.tilted", "gives NoneType, not a Method. Define METHOD"),
    "a METHOD of another kind": ("odd_own.tilted", "gives str, not a Method. Define METHOD"),
    "an import that fails": ("broken_own.tilted", r"'broken_own.tilted' cannot be imported \(No"),
}
BODIES = {"bare_own": "", "odd_own": "METHOD = 'dpo'", "broken_own": "import no_such_package"}


@pytest.mark.parametrize("case", FAULTS)
def test_a_method_that_is_none_is_a_sentence_and_code_2(
    case: str,
    recipe: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    method, sentence = FAULTS[case]
    name = method.partition(".")[0]
    if name in BODIES:
        package(tmp_path / "path", name, BODIES[name])
    monkeypatch.syspath_prepend(str(tmp_path / "path"))
    monkeypatch.chdir(tmp_path)
    for words in (["check"], []):
        with pytest.raises(SystemExit) as end:
            main([*words, written(tmp_path, recipe, method)])
        assert end.value.code == 2
        with pytest.raises(ValueError, match=sentence.replace("?", r"\?")):
            raise ValueError(capsys.readouterr().err)
    assert not Path("here").exists()


MISSING = {
    "all functions": (METHOD, "does not define read, prepare, recipe_trainer"),
    "one function": (METHOD + "read = prepare = print\n", "does not define recipe_trainer"),
    "its file": (METHOD.replace("PACKAGE.tilted", "PACKAGE.elsewhere"), "cannot be imported"),
}


@pytest.mark.parametrize("case", MISSING)
def test_a_method_whose_file_lacks_a_function_is_a_sentence_and_code_2(
    case: str,
    recipe: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    text, sentence = MISSING[case]
    name = f"lacks_{case.replace(' ', '_')}"
    package(tmp_path / "path", name, text.replace("PACKAGE.settings.TiltedConfig", "trl.DPOConfig"))
    file = tmp_path / "path" / name / "tilted.py"
    file.write_text(file.read_text().replace("    check=check_tilt,\n", ""))
    monkeypatch.syspath_prepend(str(tmp_path / "path"))
    monkeypatch.chdir(tmp_path)
    for words in (["check", "--data"], []):
        with pytest.raises(SystemExit) as end:
            main([*words[:1], written(tmp_path, recipe, f"{name}.tilted"), *words[1:]])
        err = capsys.readouterr().err
        assert end.value.code == 2 and sentence in err, err
    assert not Path("here").exists()


def test_an_entry_point_to_nowhere_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the method that is asked for; the others can still be used."""
    installed(tmp_path, "nowhere", "no_such_package.tilted:METHOD")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(
        ValueError, match=r"module of 'tilted' cannot be imported \(No module named"
    ):
        find_method("tilted")
    assert find_method("dpo") is METHODS["dpo"]


# -------------------------------------------------------------------------------- the table itself


def test_a_card_names_a_method_that_is_not_installed() -> None:
    assert method_words({"method": "derta"}) == f"derta: {METHODS['derta'].title}"
    assert method_words({"method": "gone.tilted"}) == "gone.tilted: a method of another package"
    assert method_words({}) == ""


@pytest.mark.parametrize("name", METHODS)
def test_every_method_of_the_table_has_its_file(name: str) -> None:
    row = METHODS[name]
    assert row.name == name and row.title and row.module == f"overrefusal_po.train.{name}"
    module = method_module(name)
    assert all(callable(getattr(module, needed)) for needed in NEEDED)
    assert find_method(name) is row


def test_the_table_says_what_the_methods_are() -> None:
    assert list(METHODS) == ["sft", "derta", "dpo", "orpo", "cpo", "kto", "dro"]

    def having(attribute: str) -> set[str]:
        return {name for name, row in METHODS.items() if getattr(row, attribute)}

    assert having("shares_prefix") == {"dpo", "orpo", "cpo"}
    assert having("scores_prompt") == {"orpo"}
    assert having("sides_apart") == {"kto"}
    assert having("needs_reference") == {"dpo", "kto"}
    assert having("stores_reference") == {"dpo"}
    assert having("soft_tokens") == {"dro"}
    assert {name for name, row in METHODS.items() if row.data is PairsData} == {
        "dpo",
        "orpo",
        "cpo",
        "kto",
    }


# ------------------------------------------------------------------------------ one table of
# methods

OTHER_SUBJECTS = ("makes", "scale")
"""What is compared with such a word and is no method: what a curation makes, a judge's scale."""


def method_names(node: ast.AST) -> set[str]:
    """The names of methods that an expression spells: a text, or texts in a row."""
    parts = node.elts if isinstance(node, ast.Tuple | ast.List | ast.Set) else [node]
    return {p.value for p in parts if isinstance(p, ast.Constant) and p.value in METHODS}


def decisions(tree: ast.AST) -> Iterator[str]:
    """Where a tree decides by a method's name: comparisons, cases, tables."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            subjects = {ast.unparse(side).rpartition(".")[2] for side in sides}
            if any(map(method_names, sides)) and not subjects & set(OTHER_SUBJECTS):
                yield ast.unparse(node)
        elif isinstance(node, ast.MatchValue) and method_names(node.value):
            yield f"case {ast.unparse(node)}"
        elif isinstance(node, ast.Dict):
            keys = [key for key in node.keys if key is not None]
            if sum(map(len, map(method_names, keys))) > 1:
                yield ast.unparse(node)
        elif (
            isinstance(node, ast.Call)
            and ast.unparse(node.func).endswith("startswith")
            and any(map(method_names, node.args))
        ):
            yield ast.unparse(node)


FILES = {str(path.relative_to(SOURCE)): path for path in sorted(SOURCE.rglob("*.py"))}


@pytest.mark.parametrize("file", [file for file in FILES if file != "recipe/methods.py"])
def test_no_file_but_the_table_decides_by_a_methods_name(file: str) -> None:
    found = list(decisions(ast.parse(FILES[file].read_text())))
    assert not found, f"{file}: {found}; put an attribute of Method into recipe/methods.py"


@pytest.mark.parametrize(
    "code",
    [
        "recipe.method == 'dpo'",
        "'kto' != method",
        "method in ('dpo', 'kto')",
        "name not in {'sft'}",
        "match method:\n    case 'orpo': pass",
        "{'dpo': 1, 'kto': 2}[method]",
        "method.startswith('derta')",
    ],
)
def test_such_a_decision_would_be_seen(code: str) -> None:
    assert list(decisions(ast.parse(code)))
