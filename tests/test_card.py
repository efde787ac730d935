"""card.py: a model card whose metadata the hub reads and that tells nothing of the machine it was
made on."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard
from test_report import full_run, run, step, summary

from overrefusal_po.engines._adapter_folder import adapter_hash
from overrefusal_po.records import content_id
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


# a single training


def training(folder: Path, **recipe: Any) -> Path:
    """A finished training's run folder, as far as a card reads it."""
    for name in ("model", "adapter"):
        (folder / name).mkdir(parents=True)
    model = {"model_name_or_path": "org/start", "use_peft": True, "lora_r": 16, "lora_alpha": 32}
    model |= {"lora_target_modules": ["all-linear"], "attn_implementation": "sdpa"}
    trainer = {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.1], "beta": 0.3}
    trainer |= {"hub_model_id": "me/private-name", "run_name": SECRET, "optim": "adamw_torch"}
    data = {
        "pairs": "/home/me/my pairs.jsonl",
        "opening": 8,
        "max_pairs": 40,
        "containment": "none",
    }
    values = {"task": "train", "method": "dpo", "model": model, "data": data, "trainer": trainer}
    values |= {"speed": {"shared_prefix": True, "reference_store": False}, "seed": 3}
    (folder / "recipe.yaml").write_text(yaml.safe_dump({**values, **recipe}))
    rows = [{"rule": rule, "prompt": {"kind": "benign"}} for rule in ("overrefusal",) * 3]
    rows += [{"rule": "containment", "prompt": {"kind": "harmful"}}]
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = {"steps": 132, "loss": 0.51234, "selected_step": 80, "too_long": {"pairs": "2 of 6"}}
    done["equal_openings"] = "1 of 4"
    (folder / "training.json").write_text(json.dumps({"summary": done, "history": []}))
    inputs = {"data.pairs": "63626b89975e722e", "model.model_name_or_path": "4591418908250ba5"}
    (folder / "status.json").write_text(json.dumps({"key": "k1", "inputs": inputs}))
    return folder


def evaluation(folder: Path, model: Path, **inputs: str) -> Path:
    """An evaluation's run folder."""
    folder.mkdir()
    measured = summary()["measured"]
    metrics = run("mine") | {"model": str(model), "measured": measured}
    (folder / "metrics.json").write_text(json.dumps(metrics))
    (folder / "status.json").write_text(json.dumps({"key": "k2", "inputs": inputs}))
    return folder


def test_the_card_tells_all_of_a_training_and_stands_where_people_upload(tmp_path: Path) -> None:
    folder = training(tmp_path / "run")
    file = write_card(folder)
    text = file.read_text()
    assert file == folder / "README.md"
    assert (
        text
        == (folder / "model/README.md").read_text()
        == (folder / "adapter/README.md").read_text()
    )
    for shown in (
        "| method | dpo: direct preference optimisation against the start policy |",
        "| losses | sigmoid × 1, sft × 0.1 |",
        "| trained weights | LoRA, rank 16, alpha 32, on all-linear |",
        "| trained on | the first 8 tokens of each side |",
        "| rows | 4: 3 overrefusal, 1 containment |",
        "| steps | 132 done, loss 0.5123 at the end, the weights of step 80 were kept, 2 of 6 too long",
        ", 1 of 4 pairs left out, whose sides begin with equal tokens |",
        "reference store off",
        "shared prefix on",
        "attention sdpa, dtype of the hardware |",
        "my pairs.jsonl, content 63626b89975e722e; the start model, content 4591418908250ba5",
        "the rows as trained, content ",
        "beta: 0.3",
        "optim: adamw_torch",
        "Trained from `org/start`",
        "Not measured yet",
    ):
        assert shown in text, shown
    assert "/home/me" not in text and SECRET not in text and "private-name" not in text
    assert ModelCard.load(file).data.base_model == "org/start"


@pytest.mark.parametrize(
    ("model", "words"),
    [({}, "| trained weights | all |"), ({"load_in_4bit": True, "use_peft": True}, "in 4 bits")],
)
def test_the_card_says_which_weights_were_trained(
    tmp_path: Path, model: dict[str, Any], words: str
) -> None:
    folder = training(tmp_path / "run", model={"model_name_or_path": "org/start", **model}, data={})
    text = write_card(folder).read_text()
    assert words in text and "| trained on | whole responses |" in text


def test_the_card_says_which_rows_a_harmful_prompt_became(tmp_path: Path) -> None:
    folder = training(tmp_path / "a", method="derta", data={"rows": ["safe", "rto"]})
    assert "| rows of a harmful prompt | safe, rto |" in write_card(folder).read_text()
    other = training(tmp_path / "b")
    assert "rows of a harmful prompt" not in write_card(other).read_text()


@pytest.mark.parametrize("known_by", ["path", "hash"])
def test_a_single_training_has_the_results_of_its_evaluation(tmp_path: Path, known_by: str) -> None:
    folder = training(tmp_path / "run")
    at, inputs = folder / "model", {}
    if known_by == "hash":  # the folder was moved since
        at, inputs = tmp_path / "elsewhere" / "model", {"model.model_name_or_path": "k1"}
    text = write_card(folder, measured=evaluation(tmp_path / "eval", at, **inputs)).read_text()
    assert "| mine | 0.50 [0.45, 0.50] |" in text and "| losses | sigmoid × 1" in text
    assert "harmful_refused" in {r.metric_type for r in ModelCard(text).data.eval_results}
    assert str(tmp_path) not in text


def test_an_evaluation_of_the_base_with_the_trained_adapter_is_one_of_the_model(
    tmp_path: Path,
) -> None:
    """As on a server. Another adapter is another model, also on the model of this folder."""
    folder = training(tmp_path / "run")
    (folder / "adapter/adapter_config.json").write_text("{}")
    (folder / "adapter/adapter_model.safetensors").write_text("weights")
    known = {"engine.adapter": str(adapter_hash(folder / "adapter"))}
    measured = evaluation(tmp_path / "eval", Path("my/base"), **known)
    metrics = json.loads((measured / "metrics.json").read_text())
    words = f"my/base with the adapter {folder / 'adapter'} (rank 2, trained on my/base)"
    metrics["measured"]["notes"] = [f"Measured was {words}."]
    (measured / "metrics.json").write_text(json.dumps(metrics))
    text = write_card(folder, measured=measured).read_text()
    assert "| mine | 0.50 [0.45, 0.50] |" in text and str(tmp_path) not in text
    for at, key in (("my/base", "0"), (str(folder / "model"), "0")):
        other = evaluation(tmp_path / content_id(at), Path(at), **{"engine.adapter": key})
        with pytest.raises(ValueError, match=r"with an adapter, and the card is of .*model\. Give"):
            write_card(folder, measured=other)


def test_an_evaluation_of_another_model_is_refused(tmp_path: Path) -> None:
    folder = training(tmp_path / "run")
    other = evaluation(tmp_path / "eval", tmp_path / "other" / "model")
    with pytest.raises(ValueError, match="Give the run folder of an evaluation of that model"):
        write_card(folder, measured=other)
    with pytest.raises(ValueError, match="A pipeline has its own evaluations"):
        write_card(pipeline(tmp_path / "p"), measured=other)


BAD = "</table><script>alert(1)</script> | `x` $y$ [z](http://evil.example) # h\n\n# H\n---\n@me www.evil.example \u202e"


def test_hostile_texts_of_a_training_are_words_and_nothing_else(tmp_path: Path) -> None:
    data = {"pairs": f"/x/{BAD}.jsonl", "opening": BAD, "containment": BAD}
    trainer = {"loss_type": [BAD], "optim": BAD, "beta": 0.1}
    folder = training(
        tmp_path / "run",
        data=data,
        trainer=trainer,
        method=BAD,
        seed=1,
        model={"model_name_or_path": BAD, "use_peft": True, "lora_target_modules": [BAD]},
    )
    (folder / "data.jsonl").write_text(json.dumps({"rule": BAD, "prompt": {"kind": BAD}}) + "\n")
    (folder / "status.json").write_text(json.dumps({"inputs": {"data.pairs": BAD}}))
    hostile = evaluation(tmp_path / "eval", folder / "model")
    metrics = json.loads((hostile / "metrics.json").read_text())
    (hostile / "metrics.json").write_text(json.dumps(metrics | {"name": BAD}))
    for text in (write_card(folder).read_text(), write_card(folder, measured=hostile).read_text()):
        body = text.partition("\n---\n")[2]
        # one front matter, no HTML, no link, no image, no heading of theirs, no torn table
        assert text.count("\n---\n") == 1 and "<" not in body and "\u202e" not in text
        assert "[z](" not in body and "http://" not in body and not body.count(" www.")
        assert [line for line in body.splitlines() if line.startswith("# ")].__len__() == 1
        for row in [line for line in body.splitlines() if line.startswith("| losses")]:
            assert row.replace("\\|", "").count("|") == 3
        assert ModelCard(text).data.library_name == "transformers"


def test_the_training_stage_writes_the_card_in_the_place_of_pefts(tmp_path: Path) -> None:
    folder = training(tmp_path / "run")
    (folder / "adapter" / "README.md").write_text("base_model: /home/me/model")
    write_card(folder)
    assert "/home/me" not in (folder / "adapter" / "README.md").read_text()


def test_a_damaged_recipe_is_named_with_what_to_do(tmp_path: Path) -> None:
    folder = training(tmp_path / "run")
    (folder / "recipe.yaml").write_text("task: [train\n")
    with pytest.raises(ValueError, match=r"recipe\.yaml is damaged.*Restore the file"):
        write_card(folder)
