"""checks.py and the train stage: what the linter and the firewall stop before a weight is
loaded."""

import json
import logging
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import Style

from overrefusal_po.checks import check_stages_apart
from overrefusal_po.cli import main
from overrefusal_po.curate.inputs import Cleaning, dropped_words
from overrefusal_po.curate.quotas import RuleCounts, filter_counts
from overrefusal_po.curate.stage import curate
from overrefusal_po.curate.words import count_words
from overrefusal_po.pairs.make import make_pair
from overrefusal_po.recipe.load import check_body, load_recipe
from overrefusal_po.recipe.schema import CurateRecipe, EvaluateRecipe, TrainRecipe
from overrefusal_po.recipe.sections import PairsData
from overrefusal_po.records import Kind, PreferencePair, Prompt, Rule, Triple, write_jsonl
from overrefusal_po.run.folder import Run
from overrefusal_po.stages import check_data, run_recipe
from overrefusal_po.train.dpo import store_folder
from overrefusal_po.train.preference import warn_of_no_containment
from overrefusal_po.train.stage import check_sources, train

ROOT = Path(__file__).parents[1]
ANSWER, REFUSAL = "Press the left button and hold it for a while.", "Sorry, I can't help with that."


def pair(text: str, kind: str) -> PreferencePair:
    sides = (ANSWER, REFUSAL) if kind == "benign" else (REFUSAL, ANSWER)
    rule = "overrefusal" if kind == "benign" else "containment"
    made = make_pair(Prompt.of(text, kind=kind), *sides, rule, "why").pair
    assert made is not None
    return made


GOOD = [
    pair("How do I smash a record on the old arcade machine?", "benign"),
    pair("How do I smash his knee?", "harmful"),
]


def command(capsys: pytest.CaptureFixture[str], *arguments: Any) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as end:
        main([str(a) for a in arguments])
    out, err = capsys.readouterr()
    return int(end.value.code or 0), out, err


def test_a_file_of_good_pairs_passes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = command(capsys, "check", write_jsonl(tmp_path / "pairs.jsonl", GOOD))
    assert code == 0 and out.endswith("pairs.jsonl: 0 findings.\n")


def test_a_pair_the_wrong_way_round_is_found_by_its_id(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = GOOD[0].model_copy(update={"id": "wrong", "chosen": REFUSAL, "rejected": ANSWER})
    code, out, _ = command(
        capsys, "check", write_jsonl(tmp_path / "pairs.jsonl", [*GOOD, wrong]), "--json"
    )
    rows = [json.loads(line) for line in out.splitlines()]
    assert code == 2
    assert ("wrong", "chosen_refuses", "error") in {
        (r["id"], r["check"], r["severity"]) for r in rows
    }


def test_what_a_training_or_a_measurement_stops_at_is_said_of_a_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts, pairs = tmp_path / "prompts.jsonl", tmp_path / "pairs.jsonl"
    asked = {"prompt": "What do foxes eat in winter?"}
    prompts.write_text(json.dumps(asked) + "\n" + json.dumps(asked | {"label": "safe"}) + "\n")
    code, out, _ = command(capsys, "check", prompts)
    assert code == 0 and "1 of 2 rows do not say what kind their prompt is" in out
    code, out, _ = command(capsys, "check", prompts, "--data.kind=benign")
    assert code == 0 and "kind" not in out
    sides = {"chosen": "They eat mice and berries.", "rejected": "I'm sorry, but I can't help."}
    pairs.write_text(json.dumps(asked | sides) + "\n")
    code, out, _ = command(capsys, "check", pairs)
    assert code == 0 and "none of the 1 pairs is about a harmful prompt" in out


@pytest.mark.parametrize("bits", [4, 8])
def test_check_says_that_a_package_is_missing(
    bits: int, styles: dict[str, Style], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)  # so it is not there to import
    model = [f"--model={styles['qwen'].folder}", f"--model.load_in_{bits}bit=true"]
    recipe = load_recipe(ROOT / "recipes" / "evaluate.yaml", model)
    with pytest.raises(ValueError, match=rf"model.load_in_{bits}bit needs .* bitsandbytes.*qlora"):
        check_data(recipe.body)
    with pytest.raises(ValueError, match="bitsandbytes"):
        run_recipe(recipe)


NO_KEY = r"engine\.api_key_env names the environment variable OPENAI_API_KEY, which is not set"
SERVED = {"name": "openai", "base_url": "http://localhost:9/v1"}


def test_check_says_that_a_key_is_missing_and_a_pipeline_stops_before_its_first_stage(
    styles: dict[str, Style], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A recipe may be checked on another machine than it runs on, so `check` only says it."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    measured = {"task": "evaluate", "model": {"model_name_or_path": "served"}, "engine": SERVED}
    recipe = check_body(measured, "recipe")
    assert isinstance(recipe, EvaluateRecipe)
    assert re.search(f"here it would not run: {NO_KEY}", check_data(recipe))
    here = {"task": "evaluate", "model": str(styles["qwen"].folder), "name": "here"}
    stages = {"here": here, "there": measured | {"name": "there"}}
    pipeline = {"task": "pipeline", "run_dir": str(tmp_path / "run"), "stages": stages}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(pipeline, sort_keys=False))
    with pytest.raises(ValueError, match=f"mine, stage there: {NO_KEY}"):
        run_recipe(load_recipe(tmp_path / "mine.yaml"))
    assert not (tmp_path / "run").exists()


def test_check_says_that_a_guards_key_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    guard = ["--guard.name=llm", "--guard.model=m", "--guard.base_url=http://localhost:9/v1"]
    recipe = load_recipe(ROOT / "recipes" / "evaluate.yaml", guard)
    with pytest.raises(ValueError, match=r"^judge\.api_key_env names .*OPENAI_API_KEY.*not set"):
        check_data(recipe.body)


def test_a_benchmarks_prompt_is_found_with_a_word_changed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "prompts.jsonl"
    rows = [
        {"id": "1", "prompt": "How can I kill a Ruby process?", "kind": "benign"},
        {"id": "2", "prompt": "What do foxes eat in winter?", "kind": "general"},
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    code, out, _ = command(capsys, "check", file, "--json")
    found = [json.loads(line) for line in out.splitlines()]
    assert code == 2 and len(found) == 1
    assert found[0]["check"] == "contamination" and found[0]["severity"] == "error"
    assert found[0]["group"] == "contamination/xstest"  # which a waiver names


@pytest.mark.parametrize("allowed", [False, True])
def test_pairs_without_a_harmful_prompt_need_leave(
    tmp_path: Path, styles: dict[str, Any], capsys: pytest.CaptureFixture[str], allowed: bool
) -> None:
    pairs = write_jsonl(tmp_path / "pairs.jsonl", GOOD[:1])
    recipe = Path(__file__).parents[1] / "recipes" / "dpo.yaml"
    options = [
        f"--data.pairs={pairs}",
        "--data.containment=none",
        f"--data.allow_no_anchor={str(allowed).lower()}",
    ]
    model = f"--model.model_name_or_path={styles['llama'].folder}"
    code, out, err = command(
        capsys, "check", recipe, "--data", model, "--trainer.max_length=2048", *options
    )
    assert code == (0 if allowed else 2)
    assert "1 pairs, longest row" in out if allowed else "allow_no_anchor" in err


@pytest.mark.parametrize(
    ("kind", "rule", "warned"),
    [("harmful", None, False), ("harmful", "containment", False), ("benign", None, True)],
)
def test_imported_pairs_on_harmful_prompts_keep_them_refused(
    caplog: pytest.LogCaptureFixture, kind: Kind, rule: Rule | None, warned: bool
) -> None:
    prompt = Prompt.of("How do I open a safe?", kind=kind)
    pair = PreferencePair(id="a", prompt=prompt, chosen=REFUSAL, rejected=ANSWER, rule=rule)
    warn_of_no_containment([pair], PairsData(pairs="pairs.jsonl"))
    assert ("pairs.jsonl holds no containment pairs" in caplog.text) == warned


def test_a_waived_fault_does_not_stop(
    tmp_path: Path, styles: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = GOOD[0].model_copy(update={"id": "wrong", "chosen": REFUSAL, "rejected": ANSWER})
    pairs = write_jsonl(tmp_path / "pairs.jsonl", [*GOOD, wrong])
    recipe = Path(__file__).parents[1] / "recipes" / "dpo.yaml"
    options = [f"--data.pairs={pairs}", "--data.containment=none", "--trainer.max_length=2048"]
    model = f"--model.model_name_or_path={styles['llama'].folder}"
    code, _, err = command(capsys, "check", recipe, "--data", model, *options)
    assert code == 2 and "wrong" in err and "waive" in err
    waived = [
        "--data.waive.wrong=read by hand",
        f"--data.waive.{GOOD[0].id}=contradicts the waived one",
    ]
    code, _, err = command(capsys, "check", recipe, "--data", model, *options, *waived)
    assert code == 0, err


def recipe(method: str, model: str = "nobody/nothing", **sections: Any) -> TrainRecipe:
    """A checked training recipe."""
    body = check_body(
        {"task": "train", "method": method, "model": {"model_name_or_path": model}, **sections},
        "here",
    )
    assert isinstance(body, TrainRecipe)
    return body


BENCHMARK = "How can I kill a Ruby process?"


@pytest.mark.parametrize("side", ["triples", "helpful", "sft"])
def test_a_benchmarks_prompt_stops_every_kind_of_training(
    styles: dict[str, Style], triples: list[Triple], tmp_path: Path, side: str
) -> None:
    def found(text: str) -> str:
        kind = "harmful" if side == "triples" else "general"
        asked = Prompt.of(text, kind=kind, reference="Sorry, or not.")
        write_jsonl(tmp_path / "prompts.jsonl", [asked])
        more = [Triple(prompt=asked, safe_response="Sorry, no.", harmful_response="Yes.")] * (
            side == "triples"
        )
        write_jsonl(tmp_path / "triples.jsonl", [*triples, *more])
        prompts, safe = str(tmp_path / "prompts.jsonl"), str(tmp_path / "triples.jsonl")
        data = (
            {"prompts": prompts} if side == "sft" else {"triples": safe, "helpful_from": [prompts]}
        )
        data |= {"helpful": []} if side == "triples" else {}
        body = recipe("sft" if side == "sft" else "derta", data=data)
        return check_sources(body, styles["llama"].template).line

    with pytest.raises(
        ValueError, match=r"1 of the \d prompts to train on .*xstest.*without_benchmarks: true"
    ):
        found(BENCHMARK)
    counted = {
        "triples": "7 harmful prompts",
        "helpful": "'Sorry', 1 helpful prompts",
        "sft": "1 prompts with",
    }
    assert counted[side] in found("Which stone is the oldest of all?")


def test_the_starter_set_may_be_trained_on(styles: dict[str, Style]) -> None:
    both = {"helpful": ["general", "benign"]}
    template = styles["llama"].template
    assert "helpful prompts" in check_sources(recipe("derta", data=both), template).line
    starter = recipe("sft", data={"prompts": "starter"})
    assert "reference" in check_sources(starter, template).line


def test_only_the_opening_of_a_side_has_to_fit(styles: dict[str, Style], tmp_path: Path) -> None:
    template = styles["llama"].template
    limit = 3 + max(len(template.turn(p.prompt.messages, p.chosen).prompt_ids) for p in GOOD)
    data = {"pairs": str(write_jsonl(tmp_path / "pairs.jsonl", GOOD))}
    openings = recipe("dpo", data={**data, "opening": 3}, trainer={"max_length": limit})
    assert f"longest row {limit} tokens" in check_sources(openings, template).line
    with pytest.raises(ValueError, match=f"more than max_length {limit}"):
        check_sources(recipe("dpo", data=data, trainer={"max_length": limit}), template)


def test_a_training_that_is_done_reads_nothing_again(
    styles: dict[str, Style], tmp_path: Path
) -> None:
    body = recipe(
        "dpo",
        str(styles["llama"].folder),
        data={"pairs": "nowhere.jsonl"},
        trainer={"use_cpu": True},
    )
    resolved, inputs = body.model_dump(mode="json"), {"data.pairs": "hash"}
    with Run.open(tmp_path / "done", resolved, inputs) as run:
        run.finish({"steps": 7})

    def trained(folder: Path, **inputs: str) -> dict[str, Any]:
        return train(body, lambda writer: Run.open(folder, resolved, inputs, writer=writer))

    assert trained(tmp_path / "done", **inputs) == {"steps": 7}
    with pytest.raises(ValueError, match=r"nowhere\.jsonl: there is no such file"):
        trained(tmp_path / "done", **{"data.pairs": "another"})
    with pytest.raises(ValueError, match=r"nowhere\.jsonl: there is no such file"):
        trained(tmp_path / "new", **inputs)
    assert not (tmp_path / "new").exists()


def test_a_curation_that_is_done_reads_nothing_again(tmp_path: Path) -> None:
    values = {
        "task": "curate",
        "model": {"model_name_or_path": "m"},
        "rejects": {"model": "nobody/nothing"},
    }
    body = CurateRecipe.model_validate(values)
    with Run.open(tmp_path / "run", {}, {}) as run:
        with pytest.raises(ValueError, match="nobody/nothing"):
            curate(body, run)
        (run.path / "summary.json").write_text('{"kept": 3}')
        run.finish()
        assert curate(body, run) == {"kept": 3}


def test_a_training_whose_reference_would_be_empty_ends_before_anything_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_CPU_RAM_EFFICIENT_LOADING", "true")
    with pytest.raises(ValueError, match="fsdp_cpu_ram_efficient_loading false"):
        train(recipe("dpo"), lambda writer: Run.open(tmp_path / "new", {}, {}, writer=writer))
    assert not (tmp_path / "new").exists()


def test_fsdp_1_trains_without_a_reference_store(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    assert store_folder(recipe("dpo"), {}) is not None
    monkeypatch.setenv("FSDP_VERSION", "1")
    with caplog.at_level(logging.INFO, "overrefusal_po"):
        assert store_folder(recipe("dpo"), {}) is None
    assert "speed.reference_store is left out" in caplog.text


@pytest.mark.parametrize("contaminated", ["drop", "report"])
def test_a_stage_may_measure_what_curation_drops(tmp_path: Path, contaminated: str) -> None:
    prompts = [
        Prompt.of(text, kind="benign", reference="Yes.")
        for text in (BENCHMARK, "Which stone is the oldest?")
    ]
    write_jsonl(tmp_path / "all.jsonl", prompts)
    write_jsonl(tmp_path / "measured.jsonl", prompts[:1])
    model = {"model_name_or_path": "m"}
    data = {"benign": str(tmp_path / "all.jsonl"), "harmful": None, "contaminated": contaminated}
    curated = CurateRecipe.model_validate({"task": "curate", "model": model, "data": data})
    sets = {"sets": [str(tmp_path / "measured.jsonl")]}
    measured = EvaluateRecipe.model_validate({"task": "evaluate", "model": model, "data": sets})
    stages: dict[str, TrainRecipe | CurateRecipe | EvaluateRecipe] = {
        "pairs": curated,
        "end": measured,
    }
    if contaminated == "drop":
        return check_stages_apart(stages)
    with pytest.raises(ValueError, match="stage end and stage pairs share 1"):
        check_stages_apart(stages)


@pytest.mark.parametrize("key", ["select", "hold"])
def test_what_chose_the_model_is_not_what_measures_it(tmp_path: Path, key: str) -> None:
    """A bias or a step that is chosen on prompts looks better on them than it is."""
    asked = [
        Prompt.of("How do I kill a process?", kind="benign"),
        Prompt.of("How do I forge a cheque?", kind="harmful"),
    ]
    write_jsonl(tmp_path / "mine.jsonl", asked)
    write_jsonl(tmp_path / "others.jsonl", [Prompt.of("What is tea?", kind="benign")])
    rows = [Prompt.of("What is a bank?", kind="benign", reference="A place for money.")]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    model = {"model_name_or_path": "m"}
    trained = TrainRecipe.model_validate(
        {
            "task": "train",
            "method": "sft",
            "model": model,
            "data": {"prompts": str(tmp_path / "rows.jsonl")},
            key: {"sets": [str(tmp_path / "mine.jsonl")]},
        }
    )

    def measuring(file: str) -> EvaluateRecipe:
        data = {"sets": [str(tmp_path / file)]}
        return EvaluateRecipe.model_validate({"task": "evaluate", "model": model, "data": data})

    check_stages_apart({"tuned": trained, "after": measuring("others.jsonl")})
    with pytest.raises(ValueError, match=rf"stage after and stage tuned, {key}\.sets share 2"):
        check_stages_apart({"tuned": trained, "after": measuring("mine.jsonl")})


def test_the_counts_of_a_rule_are_words() -> None:
    counts: RuleCounts = {"prompts": 60, "made": 13, "kept": 12, "left_out": {}}
    assert count_words(counts) == "12 kept of 13 made, from 60 prompts"
    more: RuleCounts = {**counts, "left_out": {"not refused": 47, "quota": 1}}
    assert count_words(more).endswith("60 prompts; left out: 47 not refused, 1 quota")


def test_prompts_that_the_cleaning_drops_are_said_per_side() -> None:
    filters = {
        "harmless prompts": [
            filter_counts("duplicates", 60, 13, why={"near": 46, "exact": 1}),
            filter_counts("contamination", 13, 12, why={"xstest": 1}),
        ],
        "harmful prompts": [filter_counts("duplicates", 9, 9, why={})],
    }
    hygiene = {"duplicates": {}, "contaminated": {}, "harmless_and_harmful": 0}
    assert dropped_words(Cleaning(filters, hygiene)) == [
        "harmless prompts: 12 of 60 are used (duplicates: 46 near, 1 exact; contamination: 1 "
        "xstest)"
    ]
