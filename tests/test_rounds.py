"""`rounds:` of a pipeline: which stages there are, what they read, and which pairs they keep."""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from conftest import judged_outcome

from overrefusal_po.cli import main
from overrefusal_po.curate.quotas import Quotas, Result, filter_rows
from overrefusal_po.judges.refusal import VERSION
from overrefusal_po.more_rounds import with_fewer
from overrefusal_po.pipeline import stage_inputs
from overrefusal_po.plugins import make_refusal_judge
from overrefusal_po.recipe.describe import stage_origins
from overrefusal_po.recipe.load import Recipe, check_body, load_recipe
from overrefusal_po.recipe.rounds import Repeats
from overrefusal_po.recipe.schema import CurateRecipe, EvaluateRecipe, TrainRecipe
from overrefusal_po.recipe.two_sided import Hold
from overrefusal_po.records import Outcome, PreferencePair, Prompt, read_jsonl, write_jsonl
from overrefusal_po.references import linked_stage, stages_left_out, stages_without_remedy
from overrefusal_po.report.rounds_part import RoundPart, round_words
from overrefusal_po.run.keys import run_key
from overrefusal_po.stage_recipes import stage_bodies
from overrefusal_po.train.data import Prepared
from overrefusal_po.train.hold_start import check_start, given_start, judged_by, known_start
from overrefusal_po.train.stage import check_selection

RECIPES = Path(__file__).parents[1] / "recipes"
POROVER, DEMO = RECIPES / "porover.yaml", RECIPES / "demo.yaml"
CURATE = {"recipe": str(RECIPES / "curate.yaml"), "model": "my/model"}
DPO = {"recipe": str(RECIPES / "dpo.yaml"), "data": {"pairs": "@curate.pairs"}}
EVALUATE = {"recipe": str(RECIPES / "evaluate.yaml"), "name": "after", "model": "@dpo.model"}


def pipeline(folder: Path, stages: dict[str, Any], **keys: Any) -> Path:
    """A pipeline's file."""
    path = folder / "pipeline.yaml"
    path.write_text(yaml.safe_dump({"task": "pipeline", **keys, "stages": stages}, sort_keys=False))
    return path


def model_of(body: Any) -> str:
    """The model that a stage names."""
    return str(body.model["model_name_or_path"])


# ------------------------------------------------------------------------------------- expansion


def test_one_number_repeats_porover_with_the_tuned_model_as_student() -> None:
    found = stage_bodies(load_recipe(POROVER, ["--rounds=3", "--model=my/model"]))
    rounds = ["curate", "dpo", "curate_2", "dpo_2", "curate_3", "dpo_3"]
    assert list(found) == ["before", *rounds, "after"]
    models = {name: model_of(body) for name, body in found.items()}
    assert models == {
        **dict.fromkeys(("before", "curate", "dpo"), "my/model"),
        **dict.fromkeys(("curate_2", "dpo_2"), "@dpo.model"),
        **dict.fromkeys(("curate_3", "dpo_3"), "@dpo_2.model"),
        "after": "@dpo_3.model",
    }
    trainings = [found[name] for name in ("dpo", "dpo_2", "dpo_3")]
    assert [body.data["pairs"] for body in trainings if isinstance(body, TrainRecipe)] == [
        "@curate.pairs",
        "@curate_2.pairs",
        "@curate_3.pairs",
    ]


def test_every_round_is_held_to_the_start_of_the_first_one() -> None:
    found = stage_bodies(load_recipe(POROVER, ["--rounds=3"]))
    bodies = [found[name] for name in ("dpo", "dpo_2", "dpo_3")]
    starts = [b.hold.start for b in bodies if isinstance(b, TrainRecipe) and b.hold is not None]
    assert starts == [None, "@dpo.start", "@dpo.start"]


def test_a_later_round_keeps_what_is_still_wrong_and_the_first_one_is_as_without_rounds() -> None:
    once, twice = (stage_bodies(load_recipe(POROVER, [f"--rounds={n}"])) for n in (1, 2))
    for name in ("before", "curate", "dpo"):
        assert once[name] == twice[name]
    later = twice["curate_2"]
    assert isinstance(later, CurateRecipe) and later.later_round is not None
    assert later.later_round.held_per_wrong == 1.0


def test_references_from_outside_stay_and_names_of_the_start_model_too() -> None:
    """The demo's teacher and its rejects are those of round 1; its DeRTa is not repeated."""
    found = stage_bodies(load_recipe(DEMO, ["--rounds=2", "--model=my/model"]))
    names = ["base", "derta", "derta_evaluate", "curate", "dpo", "curate_2", "dpo_2"]
    assert list(found) == [*names, "dpo_evaluate"]
    later = found["curate_2"]
    assert isinstance(later, CurateRecipe)
    assert (later.chosen.model, later.rejects.completions) == ("my/model", "@derta.harmful")
    assert model_of(later) == "@dpo.model" and model_of(found["dpo_evaluate"]) == "@dpo_2.model"


def test_the_keys_of_one_round_stand_under_its_own_name() -> None:
    overrides = ["--rounds=2", "--stages.dpo_2.trainer.learning_rate=1e-5"]
    recipe = load_recipe(POROVER, [*overrides, "--stages.dpo.trainer.num_train_epochs=3"])
    found = {name: b for name, b in stage_bodies(recipe).items() if isinstance(b, TrainRecipe)}
    rates = {name: b.trainer["learning_rate"] for name, b in found.items()}
    assert rates == {"dpo": 4e-4, "dpo_2": 1e-5}
    assert {b.trainer["num_train_epochs"] for b in found.values()} == {3}
    origins = stage_origins(recipe, "dpo_2")
    assert origins["trainer.learning_rate"] == "override"
    assert origins["trainer.num_train_epochs"] == "override"
    assert origins["hold.start"] == origins["data.pairs"] == "rounds"
    assert origins["data.opening"] == "file"


def test_what_lies_between_is_repeated_if_it_reads_what_is_repeated(tmp_path: Path) -> None:
    """An SFT between, an evaluation of it and one of the start: only the latter stays single."""
    stages = {
        "curate": CURATE,
        "start": {**EVALUATE, "name": "start", "model": "my/model"},
        "sft": {"task": "train", "method": "sft", "model": "my/model"}
        | {"data": {"pairs": "@curate.pairs"}, "trainer": {"output_dir": None}},
        "sft_evaluate": {**EVALUATE, "name": "sft", "model": "@sft.model"},
        "dpo": {**DPO, "model": "@sft.model"},
        "after": EVALUATE,
        "first": {**EVALUATE, "name": "round 1", "model": "@dpo_1.model"},
    }
    del stages["sft"]["trainer"]
    found = stage_bodies(load_recipe(pipeline(tmp_path, stages, rounds=2)))
    assert list(found) == [
        *("curate", "start", "sft", "sft_evaluate", "dpo"),
        *("curate_2", "sft_2", "sft_evaluate_2", "dpo_2"),
        *("after", "first"),
    ]
    assert model_of(found["sft_2"]) == "@dpo.model" and model_of(found["dpo_2"]) == "@sft_2.model"
    again, after = found["sft_evaluate_2"], found["after"]
    assert isinstance(again, EvaluateRecipe) and again.run_name == "sft, round 2"
    assert model_of(again) == "@sft_2.model" and model_of(after) == "@dpo_2.model"
    assert model_of(found["first"]) == "@dpo.model"


@pytest.mark.parametrize("rounds", [1, 2])
def test_round_1_has_its_name_with_any_number_of_rounds(tmp_path: Path, rounds: int) -> None:
    """Behind what is repeated, in it, and before anything is run."""
    sft = {"task": "train", "method": "sft", "data": {"pairs": "@curate.pairs"}}
    stages = {
        "curate": CURATE,
        "sft": {**sft, "model": "my/model"},
        "dpo": {**DPO, "model": "@sft_1.model"},
        "first": {**EVALUATE, "name": "round 1", "model": "@dpo_1.model"},
        "after": EVALUATE,
    }
    recipe = load_recipe(pipeline(tmp_path, stages, rounds=rounds))
    found = stage_bodies(recipe)
    assert model_of(found["dpo"]) == "@sft.model" and model_of(found["first"]) == "@dpo.model"
    assert model_of(found["after"]) == ("@dpo.model" if rounds == 1 else "@dpo_2.model")
    assert stage_origins(recipe, "first")["model.model_name_or_path"] == "rounds"
    wrong = {**stages, "first": {**EVALUATE, "name": "round 2", "model": "@dpo_3.model"}}
    with pytest.raises(ValueError, match=r"no output 'model' of a stage 'dpo_3'"):
        stage_bodies(load_recipe(pipeline(tmp_path, wrong, rounds=rounds)))


def test_a_stage_of_the_recipe_keeps_the_name_that_would_be_round_1s(tmp_path: Path) -> None:
    stages = {"curate": CURATE, "dpo": {**DPO, "model": "my/model"}}
    stages |= {"dpo_1": {**DPO, "model": "other/model"}, "after": {**EVALUATE, "name": "one"}}
    stages["after"]["model"] = "@dpo_1.model"
    found = stage_bodies(load_recipe(pipeline(tmp_path, stages)))
    assert model_of(found["after"]) == "@dpo_1.model" and model_of(found["dpo_1"]) == "other/model"


def test_an_own_revision_stays_with_the_model_of_round_1(tmp_path: Path) -> None:
    model = {"model_name_or_path": "my/model", "model_revision": "v2"}
    stages = {"curate": {**CURATE, "model": model}, "dpo": {**DPO, "model": model}}
    found = stage_bodies(load_recipe(pipeline(tmp_path, stages, rounds=2)))
    assert found["dpo"].model["model_revision"] == "v2"
    assert "model_revision" not in found["dpo_2"].model


def test_a_revision_in_the_file_of_a_stage_stays_with_the_model_of_round_1(tmp_path: Path) -> None:
    model = {"model_name_or_path": "my/model", "model_revision": "v2"}
    own = {"task": "train", "method": "dpo", "model": model}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(own))
    stages = {"curate": CURATE, "dpo": {"recipe": "own.yaml", "data": {"pairs": "@curate.pairs"}}}
    found = stage_bodies(load_recipe(pipeline(tmp_path, stages, rounds=2)))
    assert found["dpo"].model["model_revision"] == "v2"
    assert "model_revision" not in found["dpo_2"].model


@pytest.mark.parametrize("given", [0, -1, 1.5, "two", None])
def test_rounds_are_a_whole_number_from_1(given: Any) -> None:
    with pytest.raises(ValueError, match=r"rounds is"):
        load_recipe(POROVER, [f"--rounds={given}"])


def test_a_pipeline_without_pairs_and_a_training_has_nothing_to_repeat(tmp_path: Path) -> None:
    stages = {"curate": CURATE, "after": {**EVALUATE, "model": "my/model"}}
    with pytest.raises(ValueError, match=r"rounds is 2, .*nothing to repeat"):
        load_recipe(pipeline(tmp_path, stages, rounds=2))
    assert list(stage_bodies(load_recipe(pipeline(tmp_path, stages)))) == ["curate", "after"]


@pytest.mark.parametrize("name", ["curate_2", "dpo_1"])
def test_a_name_that_a_round_needs_is_an_error(tmp_path: Path, name: str) -> None:
    stages = {"curate": CURATE, "dpo": {**DPO, "model": "my/model"}, name: CURATE}
    with pytest.raises(ValueError, match=rf"pipeline\.yaml: .*has a stage {name} already"):
        load_recipe(pipeline(tmp_path, stages, rounds=2))


def test_a_typo_in_a_round_s_stage_lists_all_stages() -> None:
    with pytest.raises(ValueError, match=r"curate_2, dpo_2.*Did you mean dpo_2"):
        stage_bodies(load_recipe(POROVER, ["--rounds=2", "--stages.dpo2.seed=1"]))


@pytest.mark.parametrize("rounds", [1, 2])
def test_keys_of_a_round_that_the_pipeline_does_not_have_say_so(rounds: int) -> None:
    with pytest.raises(ValueError, match=rf"round 3 needs rounds: 3, and rounds is {rounds}\."):
        stage_bodies(load_recipe(POROVER, [f"--rounds={rounds}", "--stages.dpo_3.seed=1"]))


def test_check_and_explain_see_the_stages_of_all_rounds(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as end:
        main(["check", str(POROVER), "--rounds=2"])
    out = capsys.readouterr().out
    assert end.value.code in (0, None)
    assert "stages.dpo_2.hold.start" in out and "@dpo.start" in out


def test_the_start_of_a_training_without_hold_cannot_be_named(tmp_path: Path) -> None:
    dpo = {**DPO, "model": "my/model"}
    other = {**dpo, "hold": {"start": "@dpo.start"}}
    path = pipeline(tmp_path, {"curate": CURATE, "dpo": dpo, "other": other})
    with pytest.raises(ValueError, match=r"no output 'start' of a stage 'dpo'"):
        stage_bodies(load_recipe(path))


# ------------------------------------------------------------------------------- which pairs stay


def result(number: int, rule: Any, *, held: bool) -> Result[PreferencePair]:
    """A prompt's pair."""
    kind: Any = "harmful" if rule == "containment" else "benign"
    prompt = Prompt.of(f"{rule} {number}", kind=kind)
    pair = PreferencePair(
        id=f"{rule}-{number}", prompt=prompt, chosen="yes", rejected="no", rule=rule
    )
    return Result(prompt, pair, held=held)


def results(rule: Any, *, wrong: int, right: int) -> list[Result[PreferencePair]]:
    """Pairs of a rule."""
    return [result(n, rule, held=n >= wrong) for n in range(wrong + right)]


@pytest.mark.parametrize(
    ("wrong", "per_wrong", "kept"),
    [
        ((6, 1), 1.0, (12, 12)),  # both sides weigh the same
        ((6, 1), 0.5, (9, 9)),
        ((6, 1), 0.0, (6, 6)),
        ((0, 2), 1.0, (4, 4)),
        ((0, 0), 1.0, (0, 0)),
        ((6, 1), None, (46, 41)),
    ],
)
def test_a_later_round_keeps_all_that_is_wrong_and_holds_as_much_on_both_sides(
    wrong: tuple[int, int], per_wrong: float | None, kept: tuple[int, int]
) -> None:
    given = {
        rule: results(rule, wrong=n, right=40)
        for rule, n in zip(("overrefusal", "containment"), wrong, strict=True)
    }
    found = filter_rows(given, {}, Quotas(held_per_wrong=per_wrong), seed=0)
    assert tuple(found.rules[rule]["kept"] for rule in given) == kept
    assert tuple(found.corrects.values()) == wrong
    names = [entry["filter"] for entry in found.filters["overrefusal"]]
    assert ("held_per_wrong" in names) is (per_wrong is not None)


def test_a_limit_of_pairs_counts_before_the_share_that_holds() -> None:
    given = {rule: results(rule, wrong=6, right=40) for rule in ("overrefusal", "containment")}
    found = filter_rows(given, {}, Quotas(max_rows=4, held_per_wrong=1.0), seed=0)
    assert [found.rules[rule]["kept"] for rule in given] == [4, 4]
    assert list(found.corrects.values()) == [4, 4]


# ------------------------------------------------------------------------- a round that has nothing


def ended(folder: Path, stage: str) -> None:
    """A curation's folder that found nothing left to correct."""
    (folder / stage).mkdir(parents=True)
    (folder / stage / "pairs.jsonl").write_text("")
    (folder / stage / "summary.json").write_text(json.dumps({"nothing_left": "nothing is left"}))


def test_after_a_round_with_nothing_left_the_round_before_stands_for_all_later_ones(
    tmp_path: Path,
) -> None:
    repeats = Repeats(("curate", "dpo"), 4)
    assert stages_left_out(repeats, tmp_path) == {}
    ended(tmp_path, "curate_3")
    found = stages_left_out(repeats, tmp_path)
    assert found == {"dpo_3": "dpo_2", "curate_4": "curate_2", "dpo_4": "dpo_2"}
    after = stage_bodies(load_recipe(POROVER, ["--rounds=4"]))["after"]
    linked = linked_stage(after, tmp_path, found)
    assert model_of(linked) == str(tmp_path / "dpo_2" / "model")


def test_a_fit_of_a_round_that_is_left_out_is_read_in_the_round_before(tmp_path: Path) -> None:
    """The fit of round 1 kept no remedy, and stands for that of round 2, which has no folder."""
    model = {"model_name_or_path": "my/model"}
    fit = {"task": "fit", "remedy": "threshold", "model": model}
    after = {"task": "evaluate", "model": {**model, "remedy": "@fit_2.remedy"}}
    given = {"fit": fit, "curate_2": fit, "fit_2": fit, "after": after}
    stages = {name: check_body(body, name) for name, body in given.items()}
    ended(tmp_path, "curate_2")
    left_out = stages_left_out(Repeats(("curate", "fit"), 2), tmp_path)
    assert left_out == {"fit_2": "fit"}
    assert stages_without_remedy(stages, tmp_path, left_out) == {}  # type: ignore[arg-type]
    (tmp_path / "fit").mkdir()
    (tmp_path / "fit" / "summary.json").write_text('{"status": "nothing to remedy"}')
    assert stages_without_remedy(stages, tmp_path, left_out) == {  # type: ignore[arg-type]
        "after": "stage fit kept no remedy (nothing to remedy)"
    }


def test_the_words_of_a_round() -> None:
    sets = [{"harmful": 40, "benign": 30, "start": [0.8, 0.5], "trained": [0.7, 0.9]}]
    entry = {"round": 2, "stages": ["curate_2", "dpo_2"], "pairs": 66, "corrects": 31}
    part = RoundPart.model_validate({**entry, "sets": [{**sets[0], "held": [0.825, None]}]})
    assert round_words(part) == (
        "round 2 (curate_2, dpo_2): 31 pairs correct, 35 hold what is right; on dev prompts 0.82 "
        "(start 0.80) of 40 harmful prompts refused and n/a (start 0.50) of 30 benign ones answered"
    )
    named = RoundPart.model_validate(
        {**entry, "sets": [{**sets[0], "set": "contrasts (hands [10])", "held": [0.825, None]}]}
    )
    assert "; on contrasts (hands [10]) 0.82 (start 0.80) of 40 harmful" in round_words(named)
    first = RoundPart.model_validate({"round": 1, "stages": ["curate", "dpo"], "pairs": 9})
    assert round_words(first) == "round 1 (curate, dpo): 9 pairs"
    none = {"round": 2, "stages": ["curate_2"], "pairs": 0, "ended": "no pair is left"}
    words = round_words(RoundPart.model_validate(none))
    assert words == "round 2 (curate_2): no pair is left"


# ------------------------------------------------------------------------------ keys of run folders


def resolved(recipe: Recipe) -> dict[str, Any]:
    """What the pipeline's recipe.yaml holds."""
    bodies = {name: body.model_dump(mode="json") for name, body in stage_bodies(recipe).items()}
    return {"task": "pipeline", **bodies, "run_dir": "out"}


@pytest.mark.parametrize("path", [POROVER, DEMO])
@pytest.mark.parametrize(("rounds", "before"), [(2, 1), (3, 1), (3, 2)])
def test_a_pipeline_knows_what_it_was_with_fewer_rounds(
    path: Path, rounds: int, before: int
) -> None:
    whole = load_recipe(path, [f"--rounds={rounds}"])
    fewer = resolved(load_recipe(path, [f"--rounds={before}"]))
    assert run_key(with_fewer(resolved(whole), whole.repeats, before), {}) == run_key(fewer, {})


def test_a_run_without_a_name_has_that_of_its_round(tmp_path: Path) -> None:
    after = {key: value for key, value in EVALUATE.items() if key != "name"}
    stages = {"curate": CURATE, "dpo": {**DPO, "model": "my/model"}, "after": after}
    twice = load_recipe(pipeline(tmp_path, stages, rounds=2))
    once = resolved(load_recipe(pipeline(tmp_path, stages)))
    assert with_fewer(resolved(twice), twice.repeats, 1) == once


def test_keys_that_came_with_rounds_change_no_older_key() -> None:
    train, curate = {"task": "train"}, {"task": "curate"}
    held = {**train, "hold": {"aim": "both"}}
    later = {**train, "hold": {"aim": "both", "start": None}}
    assert run_key(later, {}) == run_key(held, {})
    assert run_key({**curate, "later_round": None}, {}) == run_key(curate, {})
    given = {**train, "hold": {"aim": "both", "start": "x.jsonl"}}
    assert run_key(given, {}) != run_key(held, {})


def test_a_key_that_came_later_for_one_task_stays_in_the_keys_of_another() -> None:
    """A curation had `data.harmful_share` from the start, a training got it later."""
    found = [
        run_key({"task": task, "data": data}, {})
        for task in ("curate", "train")
        for data in ({"harmful_share": None}, {})
    ]
    assert found[0] != found[1] and found[2] == found[3]


# -------------------------------------------------------------------------------- hold's own start


@pytest.fixture
def start(tmp_path: Path) -> Path:
    """A hold_start.jsonl of one harmful and one benign prompt."""
    rows = [
        judged_outcome(Prompt.of("a", kind="harmful"), "Sorry, I can't help with that."),
        judged_outcome(Prompt.of("b", kind="benign"), "Open the manual at page one."),
    ]
    return write_jsonl(tmp_path / "hold_start.jsonl", rows)


PROMPTS = [Prompt.of("b", kind="benign"), Prompt.of("a", kind="harmful")]


def test_a_given_start_comes_in_the_order_of_the_prompts_and_is_an_input(start: Path) -> None:
    found = check_start(Hold(start=str(start), max_new_tokens=256), PROMPTS)
    assert [outcome.prompt.text for outcome in found] == ["b", "a"]
    body = stage_bodies(load_recipe(POROVER, [f"--stages.dpo.hold.start={start}"]))["dpo"]
    assert "hold.start" in stage_inputs(body)


@pytest.mark.parametrize(
    ("keys", "prompts", "words"),
    [
        ({"start": "nowhere.jsonl"}, PROMPTS, "no file nowhere.jsonl"),
        ({}, [*PROMPTS, Prompt.of("c", kind="benign")], "no response to 1 of the 3 prompts"),
        (
            {"max_new_tokens": 20},
            PROMPTS,
            "made with 256 new tokens.* uses 20.*max_new_tokens to 256",
        ),
    ],
)
def test_a_start_that_does_not_fit_is_an_error(
    start: Path, keys: dict[str, Any], prompts: list[Prompt], words: str
) -> None:
    hold = Hold.model_validate({"start": str(start), "max_new_tokens": 256, **keys})
    with pytest.raises(ValueError, match=words):
        check_start(hold, prompts)


def test_a_start_by_an_older_judge_is_judged_again(
    start: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """An older version took the refusal for an answer. Nothing is judged that this judge judged."""
    hold, judge = Hold(start=str(start), max_new_tokens=256), make_refusal_judge("refusal")
    fresh = read_jsonl(start, Outcome)
    old = {"version": "0", "refusal": "none", "refusal_start": None}
    rows = [o.model_copy(update={"verdict": o.verdict.model_copy(update=old)}) for o in fresh]
    write_jsonl(start, rows)
    with caplog.at_level(logging.INFO):
        assert given_start(hold, PROMPTS, judge) == fresh[::-1]
        assert known_start(start, PROMPTS[1:], judge) == {PROMPTS[1].id: fresh[0]}
    said = f"2 responses of the start were judged by refusal 0; refusal {VERSION} judges them again"
    assert said in caplog.text
    caplog.clear()
    kept = rows[0].model_copy(update={"verdict": fresh[0].verdict})
    assert judged_by(judge, [kept]) == [kept] and not caplog.records


def test_a_start_that_an_earlier_stage_makes_is_checked_once_it_is_made() -> None:
    """Two methods from one start: the check of the pipeline comes before the first training."""
    prepared = Prepared(rows=None, lengths=np.zeros((0, 3)))
    hold = {"sets": ["starter"], "max_prompts_per_kind": 2}
    values = {"task": "train", "method": "orpo", "model": {"model_name_or_path": "my/model"}}
    named = [
        check_body({**values, "hold": {**hold, "start": start}}, "test")
        for start in ("@dpo.start", "nowhere.jsonl")
    ]
    earlier, missing = (body for body in named if isinstance(body, TrainRecipe))
    check_selection(earlier, [], prepared)
    with pytest.raises(ValueError, match=r"no file nowhere\.jsonl"):
        check_selection(missing, [], prepared)
