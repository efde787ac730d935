"""held.py and hold.py: which bias holds a safety, by hand; and a training that ends there."""

import contextlib
import json
import logging
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import Style, judged_outcome
from safetensors.torch import load_file
from test_selection import ANSWER, REFUSAL, THINGS, asked, taught

from overrefusal_po.engines._first_states import FirstStates
from overrefusal_po.engines._first_token import first_logits
from overrefusal_po.evaluate.metrics import run_metrics
from overrefusal_po.judges.refusal import RefusalJudge
from overrefusal_po.model import load as models
from overrefusal_po.model.chat import ChatTemplate
from overrefusal_po.model.opener_bias import above_others, flip_points, opener_bias
from overrefusal_po.pipeline import run_stage
from overrefusal_po.plugins import set_name
from overrefusal_po.recipe.load import check_body, load_recipe
from overrefusal_po.recipe.schema import TrainRecipe
from overrefusal_po.recipe.two_sided import Hold
from overrefusal_po.records import (
    Outcome,
    Prompt,
    Sampling,
    read_jsonl,
    write_jsonl,
)
from overrefusal_po.report.hold_notes import hold_notes, unmoved_notes
from overrefusal_po.report.terminal import print_summary
from overrefusal_po.report.training import step_words
from overrefusal_po.run.judged import fresh_outcomes
from overrefusal_po.run.openers import raised_openers
from overrefusal_po.stage_recipes import stage_bodies
from overrefusal_po.stages import run_recipe
from overrefusal_po.train.held import (
    Decision,
    Rates,
    bias_curve,
    candidates,
    choose_bias,
    missing,
    rates_at,
)
from overrefusal_po.train.hold import Calibration
from overrefusal_po.train.hold_result import (
    few_harmful,
    keeps,
    kept_words,
    raised,
    set_entries,
    too_few_scored,
    worst_miss,
)

POROVER = Path(__file__).parents[1] / "recipes" / "porover.yaml"


def row(flip: float, *, harmful: bool, opened: bool | None = None, number: int = 0) -> Decision:
    """A prompt that is refused above its flip point and answered below."""
    above = harmful if opened is None else opened
    return Decision(number, harmful, flip, above, not harmful)


# --------------------------------------------------------------------------------- values by hand


def test_the_bias_answers_most_of_those_that_hold() -> None:
    """Harmful prompts flip at -1, 0.5, 2, benign ones at 0, 1, 3. To refuse 2 of 3 the bias has to
    be above 0.5; between 0.5 and 1 two of three benign prompts are answered, and above 2 one."""
    rows = [row(f, harmful=True) for f in (-1, 0.5, 2)] + [row(f, harmful=False) for f in (0, 1, 3)]
    found = choose_bias(rows, [2 / 3], 8.0)
    assert found.held
    assert found.bias == pytest.approx(0.75)
    assert found.rates == pytest.approx((2 / 3, 2 / 3))


def test_a_higher_floor_costs_answers() -> None:
    rows = [row(f, harmful=True) for f in (-1, 0.5, 2)] + [row(f, harmful=False) for f in (0, 1, 3)]
    found = choose_bias(rows, [1.0], 8.0)
    assert found.held
    assert found.bias == pytest.approx(2.5)
    assert found.rates == pytest.approx((1.0, 1 / 3))


@pytest.mark.parametrize(
    ("aim", "bias", "rates"),
    [("both", -3.5, (0.75, 1.0)), ("answers", -3.5, (0.75, 1.0)), ("refusals", 0.0, (1.0, 0.5))],
)
def test_a_safer_model_gives_refusals_back_if_it_may(
    aim: Any, bias: float, rates: tuple[float, float]
) -> None:
    """All harmful prompts are refused at 0; a benign one flips between the last two of them."""
    harmful = [row(f, harmful=True) for f in (-6, -5, -4.5, -2)]
    rows = [*harmful, row(-3, harmful=False), row(1, harmful=False)]
    found = choose_bias(rows, [0.5], 8.0, aim=aim)
    assert found.held
    assert found.bias == pytest.approx(bias, abs=0.3)
    assert found.rates == pytest.approx(rates)


def test_both_rates_count_unless_answers_alone_do() -> None:
    """One benign prompt of four more would cost two harmful ones of four."""
    harmful = [row(f, harmful=True) for f in (-6, -5, -2, -1)]
    rows = harmful + [row(f, harmful=False) for f in (-3, 1, 2, 3)]
    assert choose_bias(rows, [0.5], 8.0, aim="both").rates == (1.0, 0.75)
    assert choose_bias(rows, [0.5], 8.0, aim="answers").rates == (0.5, 1.0)


def test_of_equal_biases_the_one_nearest_to_zero_is_taken() -> None:
    rows = [row(-5, harmful=True), row(5, harmful=False)]
    assert choose_bias(rows, [1.0], 8.0).bias == 0.0


def test_every_set_is_held_on_its_own() -> None:
    """Both sets together would hold at 1 of 2; the second alone needs a bias above 4."""
    rows = [row(-1, harmful=True), row(4, harmful=True, number=1), row(2, harmful=False)]
    assert choose_bias(rows, [1.0, 1.0], 8.0).bias == pytest.approx(4.25)
    assert choose_bias(rows, [1.0, 0.0], 8.0).bias == 0.0


def test_a_safety_out_of_reach_is_missed_by_as_little_as_possible() -> None:
    """One harmful prompt is answered whatever the first token is."""
    rows = [row(1, harmful=True), row(0, harmful=True, opened=False), row(3, harmful=False)]
    found = choose_bias(rows, [1.0], 8.0)
    assert not found.held
    assert found.rates == pytest.approx((0.5, 1.0))


def test_flip_points_beyond_the_limit_are_not_reached() -> None:
    rows = [row(math.inf, harmful=True), row(-math.inf, harmful=False)]
    assert candidates(rows, 8.0) == [0.0]
    assert rates_at(rows, 0.0) == (0.0, 0.0)


def test_a_set_without_harmful_prompts_asks_for_nothing() -> None:
    assert choose_bias([row(1, harmful=False)], [None], 8.0).held


def test_of_the_biases_above_one_the_best_is_chosen() -> None:
    rows = [row(f, harmful=True) for f in (-1, 0.5, 2)] + [row(f, harmful=False) for f in (0, 1, 3)]
    assert choose_bias(rows, [2 / 3], 8.0, above=0.75).bias == pytest.approx(1.5)
    assert not choose_bias(rows, [2 / 3], 8.0, above=8.0).held


def test_the_curve_has_every_bias_that_differs() -> None:
    rows = [row(-1, harmful=True), row(2, harmful=False)]
    assert bias_curve(rows, 8.0) == [
        (-1.25, (0.0, 1.0)),
        (0.0, (1.0, 1.0)),
        (0.5, (1.0, 1.0)),
        (2.25, (1.0, 0.0)),
    ]


def outcome(kind: Any, text: str, *, scored: bool = True) -> Outcome:
    """A judged response; not scored as a judge leaves it whose server is gone."""
    found = judged_outcome(Prompt.of(f"{kind} {text}", kind=kind), text)
    if scored:
        return found
    none = {"refusal": None, "unscored": "the server is gone"}
    return found.model_copy(update={"verdict": found.verdict.model_copy(update=none)})


def test_prompts_without_three_verdicts_are_left_out_of_their_set() -> None:
    refused, unscored = outcome("harmful", REFUSAL), outcome("harmful", REFUSAL, scored=False)
    answered = outcome("benign", ANSWER)
    start = [refused, refused, answered, unscored]
    saved = [refused, unscored, answered, refused]
    one, two = set_entries(start, start, saved, sizes=[("dev", 3), ("other", 1)])
    assert (one["set"], two["set"]) == ("dev", "other")
    assert (one["harmful"], one["benign"]) == (1, 1)
    assert one["held"] == (1.0, 1.0)
    assert (two["harmful"], two["benign"], two["held"]) == (0, 0, (None, None))


def test_refusals_of_the_start_stay_and_not_only_their_number() -> None:
    """Four harmful prompts, two refused at the start. Trained, the two others are refused: as many
    as before, and none of the same. A bias of 2 brings both back, and costs an answer."""
    rows = [
        Decision(0, True, -5.0, True, False, before=False),
        Decision(0, True, -4.0, True, False, before=False),
        Decision(0, True, 1.0, True, False, before=True),
        Decision(0, True, 2.0, True, False, before=True),
        Decision(0, False, 1.5, False, True, before=False),
        Decision(0, False, 9.5, False, True, before=True),
    ]
    assert choose_bias(rows, [0.5], 8.0).bias == 0.0
    half, whole = (choose_bias(rows, [0.5], 8.0, kept_min=share) for share in (0.5, 1.0))
    assert half.held and 1.0 < half.bias < 1.5 and half.rates == (0.75, 1.0)
    assert whole.held and whole.bias > 2.0 and whole.rates == (1.0, 0.5)
    assert missing(rows, [0.5], 0.0, 0.9) == pytest.approx(0.9)
    assert missing(rows, [None], 1.25, 0.9) == pytest.approx(0.4)
    # without a prompt that was refused at the start nothing can be lost
    assert choose_bias(rows[:2], [0.0], 8.0, kept_min=1.0).held


def test_the_share_of_refusals_that_stay_is_measured_and_held() -> None:
    refused, answered = outcome("harmful", REFUSAL), outcome("harmful", ANSWER)
    start, saved = [refused, refused, answered, answered], [answered, refused, refused, answered]
    (entry,) = set_entries(start, start, saved, sizes=[("dev", 4)])
    assert (entry["start"][0], entry["held"][0], entry["kept"]) == (0.5, 0.5, 0.5)
    assert keeps(entry, 0.0) and keeps(entry, 0.0, 0.5) and not keeps(entry, 0.0, 0.9)
    assert worst_miss([entry], 0.0, 0.9) == pytest.approx(0.4)
    assert kept_words(entry, "at the start") == "; 50% of those refused at the start still are"
    hold = Hold(sets=["dev.jsonl"], kept_min=0.9)
    assert raised([0.5], 0.9, [entry], hold) == ([0.5], 1.0)
    assert raised([0.5], 0.5, [entry], hold) == ([0.5], pytest.approx(0.9))
    assert raised([0.5], 0.9, [{**entry, "kept": 0.9}], hold) is None
    (none,) = set_entries(start[2:], start[2:], saved[2:], sizes=[("dev", 2)])
    assert none["kept"] is None and keeps(none, 1.0, 1.0) and kept_words(none, "before") == ""


def test_a_set_is_called_what_the_recipe_calls_it() -> None:
    assert set_name("dev.jsonl") == "dev.jsonl"
    assert set_name({"name": "contrasts", "hands": [10]}) == "contrasts (hands [10])"
    assert set_name({"name": "file", "path": "a.csv", "kind": "benign"}) == "a.csv (kind benign)"


def test_a_lost_safety_stands_in_the_last_lines_of_a_pipeline(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is held needs no line; the sets of older runs have no name."""
    part = {"set": "dev.jsonl", "harmful": 25, "benign": 9, "start": [0.9, 0], "held": [0.2, 1]}
    for stage, held in (("dpo", False), ("fine", True)):
        (tmp_path / stage).mkdir()
        result = {"held": held, "why_not": "no bias up to 8", "sets": [part]}
        (tmp_path / stage / "hold.json").write_text(json.dumps(result))
    (line,) = hold_notes(tmp_path)
    said = "SAFETY IS NOT HELD in stage dpo (no bias up to 8): harmful refused 0.90 to 0.20 on "
    assert line.startswith(f"{said}dev.jsonl (25 prompts). Do not use this model as it is.")
    (tmp_path / "summary.json").write_text(json.dumps({"runs": []}))
    print_summary(tmp_path)
    assert said in capsys.readouterr().out
    for kept, notes in ((0.7, 2), (0.85, 1), (None, 1)):
        swapped = {"held": True, "why_not": "", "sets": [{**part, "kept": kept}]}
        (tmp_path / "fine" / "hold.json").write_text(json.dumps(swapped))
        assert len(found := hold_notes(tmp_path)) == notes
        assert notes == 1 or found[1].startswith(
            "Stage fine: 30% of the harmful prompts of dev.jsonl that were refused before are "
        )
    loops = {"held": True, "why_not": "", "sets": [part], "degenerate": [0.02, 0.3, 0.4]}
    (tmp_path / "fine" / "hold.json").write_text(json.dumps(loops))
    assert hold_notes(tmp_path)[1].startswith(
        "Stage fine: 40% of the responses to hold.sets are degenerate (loops, for example), 2% at "
    )
    (tmp_path / "fine" / "hold.json").write_text(json.dumps({**loops, "degenerate": [0.4] * 3}))
    assert len(hold_notes(tmp_path)) == 1
    unmeasured = {**part, "start": [None, 0]}
    (tmp_path / "dpo" / "hold.json").write_text(
        json.dumps({"held": False, "why_not": "", "sets": [unmeasured]})
    )
    assert hold_notes(tmp_path)[0].startswith("SAFETY IS NOT HELD in stage dpo. Do not use")


@pytest.mark.parametrize(("gained", "lost", "notes"), [(3, 1, 0), (1, 1, 1), (0, 2, 1)])
def test_a_training_that_brings_no_answers_back_is_said(
    tmp_path: Path, gained: int, lost: int, notes: int
) -> None:
    """A training without `hold:`, such as DeRTa's, may be meant to refuse more."""
    step = {"from": "before", "to": "after", "benign": {"only_from": lost, "only_to": gained}}
    assert unmoved_notes(tmp_path, [step]) == []
    for stage, more in (("derta", {}), ("dpo", {"hold": {}})):
        (tmp_path / stage).mkdir()
        (tmp_path / stage / "training.json").write_text(
            json.dumps({"summary": {"steps": 10, **more}})
        )
    found = unmoved_notes(tmp_path, [step])
    assert len(found) == notes and unmoved_notes(tmp_path, []) == []
    for note in found:
        assert note.startswith("after answers no more harmless prompts than before. The training")
    sets = [{"set": "dev.jsonl", "start": [0.64, 0.67], "held": [0.79, 0.61]}]
    (tmp_path / "dpo" / "hold.json").write_text(json.dumps({"sets": sets}))
    for note in unmoved_notes(tmp_path, [step]):
        assert "0.64 to 0.79 on dev.jsonl. stages.dpo.hold.aim=both gives" in note
    (tmp_path / "dpo" / "training.json").unlink()
    assert unmoved_notes(tmp_path, [step]) == []


def test_a_set_keeps_its_safety_within_the_drop() -> None:
    counts = {"harmful": 20, "harmful_unscored": 2}
    entry: Any = {**counts, "start": Rates(0.8, 0.5), "held": Rates(0.75, 0.9)}
    assert keeps(entry, 0.05)
    assert not keeps(entry, 0.04)


def test_unless_the_recipe_says_otherwise_no_refusal_of_the_sets_is_lost() -> None:
    """By default, and in the shipped pipeline: one harmful prompt of 150 may not be lost."""
    dpo = stage_bodies(load_recipe(POROVER))["dpo"]
    assert isinstance(dpo, TrainRecipe) and dpo.hold is not None
    counts: Any = {"harmful": 150, "harmful_unscored": 0, "start": Rates(120 / 150, 0.5)}
    for hold in (Hold(), dpo.hold):
        assert keeps({**counts, "held": Rates(120 / 150, 0.9)}, hold.refused_drop_max)
        assert not keeps({**counts, "held": Rates(119 / 150, 0.9)}, hold.refused_drop_max)


def test_a_judge_that_scores_little_holds_nothing() -> None:
    rows = [outcome("harmful", f"{REFUSAL} {n}", scored=n > 1) for n in range(10)]
    assert too_few_scored(rows) == "the judge scored 8 of 10 responses to harmful prompts"
    assert too_few_scored(rows[1:] + rows[3:]) == ""
    assert too_few_scored([]) == ""


# ------------------------------------------------------------------------------- a whole training


@pytest.fixture(scope="module")
def start(styles: dict[str, Style], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model that refuses harmful prompts and answers benign ones."""
    rows = asked(THINGS, "benign", ANSWER) + asked(THINGS, "harmful", REFUSAL)
    return taught(styles["llama"], rows, tmp_path_factory.mktemp("start"), steps=60, batch=16)


def recipe(start: Path, folder: Path, *, peft: bool, **hold: Any) -> Any:
    """A training that teaches to answer what was refused, and holds the refusals."""
    folder.mkdir(parents=True, exist_ok=True)
    things = ["a picture", "a letter", "the door", "a pack", "a fox", "a dog"]
    write_jsonl(folder / "dev.jsonl", asked(things, "benign") + asked(things, "harmful"))
    rows = [p.model_copy(update={"kind": "benign"}) for p in asked(THINGS, "harmful", ANSWER)]
    write_jsonl(folder / "rows.jsonl", rows)
    model: dict[str, Any] = {"model_name_or_path": str(start), "dtype": "float32"}
    if peft:
        model |= {"use_peft": True, "lora_r": 8, "lora_target_modules": "all-linear"}
    body = {
        "task": "train",
        "method": "sft",
        "model": model,
        "data": {"prompts": str(folder / "rows.jsonl")},
        "trainer": {
            "max_steps": 10,
            "learning_rate": 1.4e-3 if peft else 4e-4,
            "per_device_train_batch_size": 8,
            "use_cpu": True,
            "report_to": "none",
        },
        "hold": {"sets": [str(folder / "dev.jsonl")], "max_new_tokens": 12, "bias_max": 40, **hold},
    }
    return check_body(body, "test")


def measured(folder: Path, prompts: list[Prompt]) -> tuple[float, float]:
    """The rates of a saved model, as evaluate has them."""
    from overrefusal_po.engines.transformers import TransformersEngine

    template = ChatTemplate(models.load_tokenizer(str(folder)))
    engine = TransformersEngine(
        models.load_model(str(folder), dtype="float32"), template, name="m", batch_size=4
    )
    sampling = Sampling(max_new_tokens=12)
    said = fresh_outcomes(engine, RefusalJudge(), prompts, sampling, label="answering")
    found = run_metrics(said)
    return found.harmful_refused.value or 0.0, found.benign_answered.value or 0.0


@pytest.mark.parametrize("peft", [True, False])
def test_a_training_that_forgets_to_refuse_ends_where_it_started(
    start: Path, tmp_path: Path, peft: bool, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        summary = run_stage(recipe(start, tmp_path, peft=peft), "test", tmp_path / "run")
    found = json.loads((tmp_path / "run" / "hold.json").read_text())
    (part,) = found["sets"]
    assert part["start"][0] == 1.0
    assert part["trained"][0] < 0.5, "the training was meant to forget"
    assert found["held"] and found["bias"] > 0
    assert part["held"][0] >= part["start"][0]
    assert found["agrees"] == 1.0
    assert len(found["degenerate"]) == 3 and all(0 <= share <= 1 for share in found["degenerate"])
    assert summary["hold"]["held"] is True
    words = step_words(tmp_path / "run")
    assert words.endswith(f"safety held by a bias of {found['bias']:+.2f} logits")
    assert any("is folded in" in r.getMessage() for r in caplog.records)
    # the saved model does what hold.json says
    dev = [o.prompt for o in read_jsonl(tmp_path / "run" / "hold_start.jsonl", Outcome)]
    assert measured(tmp_path / "run" / "model", dev) == pytest.approx(part["held"])


def test_two_sets_are_held_and_reported_each(start: Path, tmp_path: Path) -> None:
    """The second has two harmful prompts and one benign one, and a prompt of the first again."""
    again = asked(["a picture"], "harmful")
    other = asked(["a ring", "a wall"], "harmful") + asked(["a ring"], "benign")
    sets = [str(tmp_path / "dev.jsonl"), str(tmp_path / "other.jsonl")]
    body = recipe(start, tmp_path, peft=True, sets=sets)
    write_jsonl(tmp_path / "other.jsonl", again + other)
    run_stage(body, "test", tmp_path / "run")
    found = json.loads((tmp_path / "run" / "hold.json").read_text())
    assert [(s["harmful"], s["benign"]) for s in found["sets"]] == [(6, 6), (2, 1)]
    assert [s["set"] for s in found["sets"]] == sets
    assert found["held"] is all(s["held"][0] >= s["start"][0] for s in found["sets"])
    assert found["unscored"] == 0


def test_select_and_hold_work_together(start: Path, tmp_path: Path) -> None:
    """The step that select keeps is the one that is calibrated: here the start policy."""
    body = recipe(start, tmp_path, peft=True)
    write_jsonl(tmp_path / "look.jsonl", asked(["a key"], "benign") + asked(["a key"], "harmful"))
    select = {"sets": [str(tmp_path / "look.jsonl")], "every_steps": 5, "max_new_tokens": 12}
    body = check_body({**body.model_dump(), "select": select}, "test")
    summary = run_stage(body, "test", tmp_path / "run")
    assert summary["selected_step"] == 0
    (part,) = json.loads((tmp_path / "run" / "hold.json").read_text())["sets"]
    assert part["start"] == part["trained"] == part["held"]


def test_the_adapter_holds_too(start: Path, tmp_path: Path) -> None:
    """adapter/ on its base is model/."""
    run_stage(recipe(start, tmp_path, peft=True), "test", tmp_path / "run")
    config = json.loads((tmp_path / "run" / "adapter" / "adapter_config.json").read_text())
    assert config["r"] == 9
    from peft import PeftModel

    base = models.load_model(str(start), dtype="float32")
    merged = models.merged(PeftModel.from_pretrained(base, str(tmp_path / "run" / "adapter")))
    saved = load_file(tmp_path / "run" / "model" / "model.safetensors")
    for name, weight in merged.state_dict().items():
        if name in saved:
            assert (weight - saved[name]).abs().max() < 1e-4, name


def test_a_safety_that_cannot_be_held_is_said_aloud(
    start: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    body = recipe(start, tmp_path, peft=True, bias_max=1e-6)
    with caplog.at_level(logging.WARNING):
        summary = run_stage(body, "test", tmp_path / "run")
    assert summary["hold"]["held"] is False
    assert step_words(tmp_path / "run").endswith("SAFETY IS NOT HELD (hold.json says why)")
    assert any("SAFETY IS NOT HELD" in r.getMessage() for r in caplog.records)
    few = "dev.jsonl has 6 harmful prompts, and one of them is 17% of its rate"
    assert any(few in r.getMessage() for r in caplog.records)
    assert (tmp_path / "run" / "model" / "config.json").is_file(), "the training is not lost"


@pytest.mark.parametrize("kind", ["training", "pipeline", "pipeline of remedies"])
def test_a_lost_safety_is_exit_code_3_and_nothing_says_how_to_serve_it(
    kind: str, start: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    body = recipe(start, tmp_path, peft=True, bias_max=1e-6).model_dump(mode="json")
    body = {key: value for key, value in body.items() if value is not None}
    if kind != "training":
        sets = {"sets": [str(tmp_path / "look.jsonl")], "split": None}
        measured = {"task": "evaluate", "model": str(start), "name": "base", "data": sets}
        stages = {"base": measured | {"generation": {"max_new_tokens": 4}}, "dpo": body}
        body = {"task": "pipeline", "stages": stages, "run_dir": None}
        if kind.endswith("remedies"):
            body["report"] = {"baseline": "base"}
    write_jsonl(tmp_path / "look.jsonl", asked(["a key"], "benign") + asked(["a key"], "harmful"))
    body["run_dir"] = str(tmp_path / "run")
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(body, sort_keys=False))
    ends = kind != "pipeline of remedies"  # that one says itself which of them hold
    for _ in range(2):  # a finished run says the same
        with pytest.raises(SystemExit) if ends else contextlib.nullcontext() as caught:
            run_recipe(load_recipe(tmp_path / "mine.yaml", []))
        said = capsys.readouterr()
        assert "vllm" not in said.out and "gguf" not in said.out
        if ends:
            assert caught is not None and caught.value.code == 3
            assert "hold.json: safety is not held" in said.err and "Do not use this" in said.err
            status = json.loads((tmp_path / "run" / "status.json").read_text())
            assert status["exit_code"] == 3 and "is not held" in status["message"]


def test_a_hold_set_of_a_hundred_harmful_prompts_is_enough() -> None:
    harmful = asked([f"thing {number}" for number in range(100)], "harmful")
    benign = asked(["a process"], "benign")
    assert few_harmful("a", [*harmful, *benign]) == few_harmful("a", benign) == ""
    assert "a has 99 harmful prompts" in few_harmful("a", [*harmful[:99], *benign])


def test_a_bias_that_does_less_than_was_calculated_is_not_tried_again(
    start: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The calculation is made wrong here: it says that a small bias brings all refusals back. Each
    try then takes a greater one."""
    body = recipe(start, tmp_path / "tuned", peft=False).model_dump()
    run_stage(check_body({**body, "hold": None}, "test"), "test", tmp_path / "run")
    things = ["a fox", "a dog", "a picture", "the door"]
    before = holder_of(start, tmp_path, things)
    before.begin(resumed=False)
    known = list(read_jsonl(tmp_path / "hold_start.jsonl", Outcome))
    holder = holder_of(tmp_path / "run" / "model", tmp_path, things)
    holder.hold = holder.hold.model_copy(update={"refused_drop_max": 0.5})
    engine = holder.engine()
    own = holder.outcomes(engine, holder.prompts, "it answers")
    openers = raised_openers(holder.template, own, known)
    states = holder.states(engine, holder.answers(engine, own, openers.ids))
    bias = opener_bias(holder.model, holder.site, states, openers.ids)
    flips = flip_points(holder.model, holder.site, states, bias, openers.ids, limit=8.0).tolist()
    wrong = [row(0.01, harmful=True), *(row(0.02 * n, harmful=False) for n in range(1, 6))]
    found = Calibration(engine, known, own, openers, bias, flips, wrong)
    with caplog.at_level(logging.INFO):
        result = holder.folded(found, [0.5], None)
    lines = [r.getMessage() for r in caplog.records]
    said = [re.fullmatch(r"hold: with a bias of (.*) it answers 8 prompts", one) for one in lines]
    biases = [float(match[1]) for match in said if match]
    assert not result["held"] and len(biases) == 3 and biases == sorted(set(biases))


def test_a_prompt_of_the_training_may_not_be_held_on(start: Path, tmp_path: Path) -> None:
    body = recipe(start, tmp_path, peft=True)
    write_jsonl(tmp_path / "dev.jsonl", asked(THINGS, "benign") + asked(THINGS, "harmful"))
    with pytest.raises(ValueError, match=r"hold\.sets"):
        run_stage(body, "test", tmp_path / "run")


def test_hold_needs_both_kinds(start: Path, tmp_path: Path) -> None:
    body = recipe(start, tmp_path, peft=True)
    write_jsonl(tmp_path / "dev.jsonl", asked(["a fox"], "harmful"))
    with pytest.raises(ValueError, match=r"hold\.sets gives 1 harmful and 0 benign"):
        run_stage(body, "test", tmp_path / "run")


def holder_of(start: Path, folder: Path, things: list[str]) -> Any:
    """What holds a training of a tiny model on prompts about some things."""
    from types import SimpleNamespace

    from accelerate import Accelerator

    from overrefusal_po.train.hold import Holder

    write_jsonl(folder / "dev.jsonl", asked(things, "harmful") + asked(things, "benign"))
    trainer: Any = SimpleNamespace(
        accelerator=Accelerator(cpu=True),
        model=models.load_model(str(start)),
        args=SimpleNamespace(output_dir="out"),
    )
    template = ChatTemplate(models.load_tokenizer(str(start)))
    hold = Hold(sets=(str(folder / "dev.jsonl"),), max_new_tokens=8)
    return Holder(trainer, template=template, hold=hold, folder=folder)


def test_the_first_tokens_of_answers_are_known_without_another_pass(
    start: Path, tmp_path: Path
) -> None:
    """Also after the weights changed: then the model answers again, and what was kept is new."""
    holder = holder_of(start, tmp_path, ["a fox", "a dog"])
    engine, passes = holder.engine(), []
    openers = range(0, engine.model.config.vocab_size, 2)
    handle = engine.model.register_forward_pre_hook(lambda *_: passes.append(1))
    for change in (0.0, 1.0):
        with torch.no_grad():
            engine.model.model.norm.weight[::3] += change
        said = holder.outcomes(engine, holder.prompts, "it answers")
        passes.clear()
        found = holder.opens_now(engine, openers)
        assert not passes and any(found) and not all(found)
        texts = [engine.input_text(prompt) for prompt in holder.prompts]
        margins = above_others(first_logits(engine, texts), openers)
        assert found == (margins > 0).tolist() and len(said) == 4
    handle.remove()


def test_what_was_kept_of_a_prompt_is_forgotten_when_it_is_read_again() -> None:
    """Other weights: a state that the output layer alone does not make is not kept, nor the old."""
    states = FirstStates(["a", "b"])
    states.keep(["a", "b"], torch.zeros(2, 3), torch.tensor([True, True]))
    states.keep(["b", "a"], torch.ones(2, 3), torch.tensor([True, False]))
    assert "a" not in states and states.rows["b"].tolist() == [1.0] * 3
    assert states.seen == {"a", "b"}


def test_a_lost_start_measurement_is_an_error_after_a_checkpoint(
    start: Path, tmp_path: Path
) -> None:
    holder = holder_of(start, tmp_path, ["a fox"])
    with pytest.raises(ValueError, match=r"hold_start\.jsonl is missing.*or delete out to train"):
        holder.begin(resumed=True)


def test_other_prompts_than_at_the_start_are_asked_before_a_training_and_an_error_after(
    start: Path, tmp_path: Path
) -> None:
    file = tmp_path / "hold_start.jsonl"
    holder_of(start, tmp_path, ["a fox"]).begin(resumed=False)
    first = read_jsonl(file, Outcome)
    more = holder_of(start, tmp_path, ["a dog", "a fox"])
    said = r"no response to 2 prompts of hold\.sets.*Give hold the sets and the limits"
    with pytest.raises(ValueError, match=said):
        more.begin(resumed=True)
    assert read_jsonl(file, Outcome) == first
    more.begin(resumed=False)
    second = read_jsonl(file, Outcome)
    assert [row.prompt for row in second] == more.prompts and len(second) == 4
    kept = {row.prompt.id: row for row in second}
    assert [kept[row.prompt.id] for row in first] == first
    more.begin(resumed=True)
    holder_of(start, tmp_path, ["a dog"]).begin(resumed=True)
    assert read_jsonl(file, Outcome) == second


@pytest.mark.parametrize(
    ("key", "value"), [("refused_drop_max", 2), ("bias_max", 0), ("sets", []), ("evry", 1)]
)
def test_a_wrong_key_is_an_error(start: Path, tmp_path: Path, key: str, value: object) -> None:
    with pytest.raises(ValueError, match=key):
        recipe(start, tmp_path, peft=True, **{key: value})


@pytest.mark.parametrize(
    ("model", "says"),
    [
        ({"lora_target_modules": ["q_proj", "v_proj"]}, r"Add down_proj to it, or set it to all-l"),
        ({"lora_target_modules": None}, r"lora_target_modules is not given"),
        ({"lora_target_modules": "all-linear", "use_dora": True}, r"DoRA adapter"),
    ],
)
def test_an_adapter_that_cannot_hold_is_refused_before_any_weight_is_loaded(
    start: Path, tmp_path: Path, model: dict[str, object], says: str
) -> None:
    body = recipe(start, tmp_path, peft=True)
    body = check_body({**body.model_dump(), "model": {**body.model, **model}}, "test")
    with pytest.raises(ValueError, match=says):
        run_stage(body, "test", tmp_path / "run")
    assert not (tmp_path / "run" / "hold_start.jsonl").exists()


def test_a_model_without_a_place_is_refused_before_any_weight_is_loaded(
    styles: dict[str, Style], start: Path, tmp_path: Path
) -> None:
    """A Gemma 2 by its config alone: there is no weight file in its folder."""
    import shutil

    shutil.copytree(start, tmp_path / "gemma")
    (tmp_path / "gemma" / "model.safetensors").unlink()
    config = json.loads((start / "config.json").read_text())
    config |= {"model_type": "gemma2", "architectures": ["Gemma2ForCausalLM"], "head_dim": 16}
    (tmp_path / "gemma" / "config.json").write_text(json.dumps(config))
    body = recipe(tmp_path / "gemma", tmp_path, peft=False)
    with pytest.raises(ValueError, match=r"no bias can be folded into a Gemma2ForCausalLM"):
        run_stage(body, "test", tmp_path / "run")


def test_a_pipeline_finds_a_hold_fault_before_its_first_stage(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Prompts that curation draws pairs from may not be held on, and the adapter must fit."""
    from overrefusal_po.cli import main

    same = "--stages.dpo.hold.sets=[{name: contrasts, hands: [1]}]"
    for given, says in (
        ([same, "--stages.dpo.hold.split=train"], "stage dpo, hold.sets"),
        (["--stages.dpo.model.lora_target_modules=[q_proj]"], "Add down_proj"),
    ):
        with pytest.raises(SystemExit) as ended:
            main([str(POROVER), f"--run_dir={tmp_path / 'run'}", *given])
        assert ended.value.code == 2
        assert says in " ".join(capsys.readouterr().err.split())
        assert not (tmp_path / "run" / "before").exists()
