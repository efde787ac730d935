"""`overrefusal-po explain`: every key of a recipe has a type, a default and a text."""

import subprocess
import sys
from pathlib import Path

import pytest

from overrefusal_po.cli import main
from overrefusal_po.recipe.explain import Context, contexts, explanation
from overrefusal_po.recipe.keys import REQUIRED, keys_of, unwrapped
from overrefusal_po.recipe.load import load_recipe
from overrefusal_po.recipe.methods import METHODS
from overrefusal_po.recipe.overrides import dotted
from overrefusal_po.recipe.schema import TASKS
from overrefusal_po.recipe.trl_fields import field_table

RECIPES = Path(__file__).parents[1] / "recipes"
CONTEXTS = [("train", method) for method in METHODS] + [(t, None) for t in TASKS if t != "train"]


def command(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of `overrefusal-po explain ...`."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        main(["explain", *arguments])
    out, err = capsys.readouterr()
    return int(end.value.code or 0), out, err


@pytest.mark.parametrize(("task", "method"), CONTEXTS)
def test_every_key_has_a_type_and_a_text(task: str, method: str | None) -> None:
    for name, key in keys_of(task, method).items():
        assert key.text and key.type and "another type" not in (key.type if not key.owner else "")
        assert "None" not in key.text or key.owner, f"{name}: YAML says null"


@pytest.mark.parametrize(("task", "method"), CONTEXTS)
def test_the_keys_of_every_section_are_keys_too(task: str, method: str | None) -> None:
    keys = keys_of(task, method)
    for name, key in keys.items():
        assert all(f"{name}.{inner}" in keys for inner in key.inner), name


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda p: p.name)
def test_every_key_of_a_shipped_recipe_can_be_explained(path: Path) -> None:
    known = contexts()
    for key, _ in dotted(load_recipe(path).resolved()):
        if not key.startswith("stages."):
            assert explanation(key, known).startswith(f"{key}  (")


def test_a_key_of_trl_has_trls_own_text(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = command(capsys, "trainer.beta", "--method", "dpo")
    assert code == 0
    head, kind, default, owner, *text = out.splitlines()
    assert head == "trainer.beta  (train: dpo)"
    assert kind == "  type: a number of at least 0" and default == "  default: 0.1"
    assert owner == "  of: TRL's DPOConfig"
    help_text = field_table("trl.DPOConfig")["beta"]["help"]
    assert " ".join(" ".join(text).split()) == help_text and len(help_text) > 50


def test_methods_that_know_a_key_in_the_same_way_share_a_paragraph(
    capsys: pytest.CaptureFixture[str],
) -> None:
    _, out, _ = command(capsys, "trainer.learning_rate")
    heads = [line for line in out.splitlines() if line.startswith("trainer.learning_rate")]
    assert heads == [
        "trainer.learning_rate  (train: sft, derta, dro)",
        "trainer.learning_rate  (train: dpo, orpo, cpo, kto)",
    ]
    assert "default: 2e-05" in out and "default: 1e-06" in out


def test_our_keys_have_the_text_of_their_section_and_each_option_its_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, out, _ = command(capsys, "data.containment")
    lines = out.splitlines()
    assert code == 0 and lines[0] == "data.containment  (train: dpo, orpo, cpo, kto)"
    assert lines[1:3] == ["  type: one of student, none", "  default: none"]
    assert "  - `none`: no." in lines and any(n.startswith("  - `student`: ") for n in lines)


@pytest.mark.parametrize(
    ("key", "head", "parts"),
    [
        ("data.opening", "train: sft", ["a whole number", "(train: dpo, orpo, cpo, kto)"]),
        ("data.containment", "train: dpo, orpo, cpo, kto", ["one of student, none"]),
        ("model.lora_r", "every task", ["default: 16", "TRL's ModelConfig"]),
        ("model.trust_remote_code", "every task", ["true or false"]),
        ("model.remedy", "curate; fit; evaluate; pipeline", ["text or null", "@stage.remedy"]),
        ("select.tolerance", "train", ["a number from 0 to 1", "default: 0.05"]),
        ("stages", "pipeline", [f"default: {REQUIRED}", "recipe: FILE"]),
        ("gate", "evaluate", ["a section or null", "keys: baseline, on"]),
        ("base", "every task", ["relative to the file"]),
        ("method", "train", ["one of sft, derta, dpo, orpo, cpo, kto, dro"]),
        ("trainer.bf16", "train", ["auto (decided by the hardware)"]),
        ("trainer.seed", "train", ["the recipe's seed"]),
        ("stages.tuned.gate.on", "evaluate", ["gate.on", "one of interval, value"]),
    ],
)
def test_a_key_says_who_knows_it(
    capsys: pytest.CaptureFixture[str], key: str, head: str, parts: list[str]
) -> None:
    code, out, _ = command(capsys, key)
    assert code == 0 and f"({head})" in out.splitlines()[0]
    for part in parts:
        assert part in out


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["trainer.betta"], ["trainer.betta is not a key", "Did you mean trainer.beta"]),
        (["beta"], ["Did you mean trainer.beta"]),
        (["tolerence"], ["Did you mean tolerance"]),
        (["zzzz"], ["not a key of a recipe", "explain data"]),
        (["judge.model"], ["keys under judge are not fixed", "explain judge"]),
        (["trainer.output_dir"], ["cannot be set", "run_dir"]),
        (["data.triples", "--method", "dpo"], ["not a key here", "derta"]),
        (["trainer.beta", "--method", "ppo"], ["'ppo'", "sft, derta, dpo"]),
        (["seed", "--recipe", "nowhere.yaml"], ["no such recipe"]),
        (
            ["stages.befor.seed", "--recipe", str(RECIPES / "porover.yaml")],
            ["no stage 'befor'", "before, curate, dpo, after", "Did you mean before?"],
        ),
    ],
)
def test_an_unknown_key_ends_with_2_and_names_near_ones(
    capsys: pytest.CaptureFixture[str], arguments: list[str], parts: list[str]
) -> None:
    code, out, err = command(capsys, *arguments)
    assert code == 2 and out == ""
    for part in parts:
        assert part in err


def test_with_a_recipe_its_method_and_its_value_are_shown(
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, out, _ = command(capsys, "trainer.beta", "--recipe", str(RECIPES / "dpo.yaml"))
    assert code == 0 and out.startswith("trainer.beta  (train: dpo)\n")
    assert out.splitlines()[-1].split() == ["trainer.beta", "0.3", "file"]


def test_with_a_pipeline_each_stage_shows_its_value(capsys: pytest.CaptureFixture[str]) -> None:
    demo = str(RECIPES / "demo.yaml")
    _, out, _ = command(capsys, "data.split", "--recipe", demo)
    ends = [line.split() for line in out.splitlines() if line.startswith("stages.")]
    assert ["stages.base.data.split", "test", "file"] in ends
    assert ["stages.curate.data.split", "train", "file"] in ends and len(ends) == 4
    _, out, _ = command(capsys, "stages.dpo.data.containment", "--recipe", demo)
    assert "(train: dpo)" in out
    assert out.splitlines()[-1].split() == ["stages.dpo.data.containment", "none", "file"]


@pytest.mark.parametrize("option", [["--recipe"], []])
def test_text_and_default_stand_beside_the_value_of_a_pipelines_stage(
    capsys: pytest.CaptureFixture[str], option: list[str]
) -> None:
    """The recipe may follow the key; and a section shows all keys under it."""
    porover = [*option, str(RECIPES / "porover.yaml")]
    code, out, _ = command(capsys, "stages.dpo.hold.sets", *porover)
    lines = out.splitlines()
    assert code == 0 and '  default: ["starter"]' in lines
    assert lines[-1] == 'stages.dpo.hold.sets  [{"name": "contrasts", "hands": [10]}]  file'
    _, out, _ = command(capsys, "stages.dpo.hold", *porover)
    shown = [line.split()[0] for line in out.splitlines() if line.startswith("stages.dpo.")]
    assert {"stages.dpo.hold.sets", "stages.dpo.hold.refused_drop_max"} <= set(shown)


def test_a_stages_key_without_a_recipe_says_how_its_value_is_shown(
    capsys: pytest.CaptureFixture[str],
) -> None:
    _, out, _ = command(capsys, "stages.dpo.hold.sets")
    said = "  value: overrefusal-po explain stages.dpo.hold.sets RECIPE.yaml"
    assert out.splitlines()[-1] == said
    _, out, _ = command(capsys, "hold.sets")
    assert "value:" not in out


def test_it_loads_no_torch() -> None:
    field_table("trl.DPOConfig")  # made once; then it is read from the cache
    code = (
        "import sys\nfrom overrefusal_po.cli import main\n"
        "try:\n    main(['explain', 'trainer.beta'])\n"
        "except SystemExit as end:\n    print(end.code, sorted({'torch', 'transformers', 'trl'} & "
        "set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] in ("0 []", "None []")


def test_a_docstring_is_unwrapped_by_paragraphs_and_items() -> None:
    text = "One sentence\nthat goes on.\n\n- `a`: first,\n  and on.\n- `b`: second."
    assert unwrapped(text) == (
        "One sentence that goes on.\n\n- `a`: first, and on.\n- `b`: second."
    )


def test_a_context_with_a_method_of_ones_own_has_its_keys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "method.py").write_text(
        "from overrefusal_po.recipe.methods import METHODS\n"
        "METHOD = METHODS['sft']._replace(name='own', config='trl.DPOConfig')\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    keys = Context("train", "own.method").keys
    assert "trainer.beta" in keys and "data.prompts" in keys
