"""card.py: a model card whose metadata the hub reads and that tells nothing of the machine it was
made on."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard
from test_report import full_run, run, step, summary

from overrefusal_po.report.card import base_model, write_card

SECRET = "hf_abcdefghijklmnop"


def pipeline(folder: Path, **changes: Any) -> Path:
    """A pipeline's folder with two trained stages."""
    for stage, start in (
        ("derta", "bundled:smollm2-135m-instruct"),
        ("dpo", f"{folder}/derta/model"),
    ):
        (folder / stage / "model").mkdir(parents=True)
        trainer = {
            "learning_rate": 1e-4,
            "hub_token": SECRET,
            "output_dir": f"{folder}/x",
            "bf16": False,
        }
        recipe = {
            "task": "train",
            "method": stage,
            "model": {"model_name_or_path": start},
            "trainer": trainer,
        }
        (folder / stage / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    runs = [
        run("base") | {"model": "bundled:smollm2-135m-instruct"},
        run("DeRTa") | {"model": f"{folder}/derta/model"},
        full_run("DPO|1") | {"model": f"{folder}/dpo/model"},
        run("prompted") | {"model": "/home/somebody/model"},
    ]
    measured = {
        "judge": "refusal 2",
        "sets": ["starter (test split)", f"{folder}/mine.jsonl"],
        "engine": "transformers, greedy",
        "guard": None,
        "notes": ["a note", f"{folder}/mine.jsonl: a note with a path"],
    }
    values = (
        summary(runs=runs, measured=measured, comparisons=[step("base", "DeRTa")], transitions=[])
        | changes
    )
    (folder / "summary.json").write_text(json.dumps(values))
    return folder


def test_the_card_stands_beside_the_last_model_that_was_trained_here(tmp_path: Path) -> None:
    assert write_card(pipeline(tmp_path)) == tmp_path / "dpo" / "README.md"
    assert write_card(tmp_path, run="DeRTa") == tmp_path / "derta" / "README.md"


def test_its_metadata_is_what_the_hub_reads_and_holds_the_rates(tmp_path: Path) -> None:
    data = ModelCard.load(write_card(pipeline(tmp_path))).data
    assert (
        data.base_model == "HuggingFaceTB/SmolLM2-135M-Instruct"
        and data.library_name == "transformers"
    )
    found = {(r.dataset_name, r.metric_type): r for r in data.eval_results}
    harmful_refused = found["starter (test split), mine.jsonl", "harmful_refused"]
    assert harmful_refused.metric_value == 0.9 and harmful_refused.metric_args == {
        "interval_95": [0.81, 0.9],
        "n": 137,
        "unscored": 4,
    }
    assert (
        found["starter", "harmful_refused"].metric_value == 0.8
        and ("xstest", "harmful_refused") not in found
    )
    attacked = found[
        "starter (test split), mine.jsonl, attacked with codeattack", "harmful_refused"
    ]
    assert attacked.metric_value == 0.4
    assert (
        "starter (test split), mine.jsonl, attacked with codeattack",
        "benign_answered",
    ) not in found


def test_its_words_hold_every_run_both_rates_the_gate_and_the_limits(tmp_path: Path) -> None:
    text = write_card(pipeline(tmp_path)).read_text()
    for shown in (
        "| base | 0.50 [0.45, 0.50] |",
        "| DPO\\|1 | 0.90 [0.81, 0.90] |",
        "| 0.93 [0.88, 0.97] |",
        "| codeattack | 0.60 [0.60, 0.64] | 137 |",
        "certified against 900 human labels, κ 0.923",
        "The gate failed:\n\n- benign\\_answered is 0.600",
        "No guard model read the responses",
        "learning_rate: 0.0001",
        "- a note\n",
    ):
        assert shown in text, shown
    assert "uncertified" in write_card(tmp_path, run="DeRTa").read_text()


def test_no_path_and_no_key_of_this_machine_is_in_it(tmp_path: Path) -> None:
    for name in (None, "DeRTa"):
        text = write_card(pipeline(tmp_path / str(name)), run=name).read_text()
        assert (
            str(tmp_path) not in text
            and "/home/somebody" not in text
            and SECRET not in text
            and "tmp" not in text
        )


def test_hostile_names_break_neither_metadata_nor_table(tmp_path: Path) -> None:
    hostile = "<script>alert(1)</script>\n---\n| x | `y` \u202e [z](http://evil.example)"
    card = write_card(pipeline(tmp_path, title=hostile))
    text, data = card.read_text(), ModelCard.load(card).data
    assert (
        "<script" not in text
        and "\u202e" not in text
        and "[z](" not in text.replace("\\[", "").replace("\\]", "")
    )
    assert data.base_model == "HuggingFaceTB/SmolLM2-135M-Instruct" and text.count("\n---\n") == 1


def test_a_folder_without_a_trained_model_is_an_error_that_says_so(tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text(json.dumps(summary()))
    with pytest.raises(
        ValueError,
        match=r"no run was trained in this folder.*Runs with a model of this folder: none",
    ):
        write_card(tmp_path)
    folder = pipeline(tmp_path / "other")
    with pytest.raises(
        ValueError, match=r"run 'base' has no model that was trained.*'DeRTa', 'DPO\|1'"
    ):
        write_card(folder, run="base")


@pytest.mark.parametrize(
    ("name", "base"),
    [
        ("bundled:smollm2-135m-instruct", "HuggingFaceTB/SmolLM2-135M-Instruct"),
        ("bundled:unknown", None),
        ("org/model-1.5", "org/model-1.5"),
        ("/home/me/model", None),
        ("../model", None),
        ("~/model", None),
        ("", None),
    ],
)
def test_the_base_model_is_a_hub_name_or_nothing(
    tmp_path: Path, name: str, base: str | None
) -> None:
    assert base_model({"model": {"model_name_or_path": name}}, tmp_path) == base


def test_stages_that_name_each_other_in_a_ring_have_no_base_model(tmp_path: Path) -> None:
    recipe = {"model": {"model_name_or_path": f"{tmp_path}/a/model"}}
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert base_model(recipe, tmp_path) is None
