"""The table of remedies: order, corrected p, what holds, the sentence on top, and the page."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from browser import A4_PIXELS, cut_off_on_paper, heard, open_page
from playwright.sync_api import Browser
from test_compare import folder_of, said, with_log_odds
from test_report import HOSTILE, words

from overrefusal_po.evaluate.first_token_rows import FirstTokens
from overrefusal_po.evaluate.remedy_table import HoldRule, best, changed, remedy_rows
from overrefusal_po.evaluate.side_by_side import holm
from overrefusal_po.recipe.fit import FitRecipe
from overrefusal_po.recipe.report import Report
from overrefusal_po.recipe.schema import EvaluateRecipe, TrainRecipe
from overrefusal_po.records import Outcome
from overrefusal_po.report.card_results import result_parts
from overrefusal_po.report.page import write_report
from overrefusal_po.report.pipeline_summary import make_summary, unlike_notes
from overrefusal_po.report.remedies_entry import (
    broken,
    is_other_report,
    nothing_words,
    perplexity_ratio,
    tampered,
    tampered_alike,
)
from overrefusal_po.report.remedies_made import (
    Stages,
    fit_entries,
    fit_seconds,
    run_seconds,
    served,
    speed,
    speed_ratio,
)
from overrefusal_po.report.remedies_part import (
    RemediesPart,
    cell,
    no_gain_words,
    remedies_lines,
)
from overrefusal_po.report.summary import Summary, read_summary
from overrefusal_po.report.terminal import print_summary

HALF = "f" * 20 + "n" * 20
BEFORE = said("harmful", "f" * 38 + "nn") + said("benign", HALF)
GOOD = said("harmful", "f" * 38 + "nn") + said("benign", "f" * 5 + "n" * 35)
SMALL = said("harmful", "f" * 38 + "nn") + said("benign", "f" * 18 + "n" * 22)
LOST = said("harmful", "f" * 20 + "n" * 20) + said("benign", "n" * 40)
RUNS = {"before": BEFORE, "small": SMALL, "lost": LOST, "good": GOOD}
REPORT = Report(baseline="before")


# --- numbers --------------------------------------------------------------------------------------


def test_holding_runs_stand_first_and_the_greatest_gain_before_the_others() -> None:
    rows = remedy_rows("before", RUNS, FirstTokens({}), HoldRule(0.05))
    assert [(row.name, row.holds) for row in rows] == [
        ("good", True),
        ("small", True),
        ("lost", False),
    ]
    assert rows[0].whole.gain.value == pytest.approx(15 / 40)
    assert rows[2].why_not == "harmful refused falls by 0.45, allowed is 0.05"
    assert rows[0].whole.off_curve.value is None and rows[0].sets == {}


def test_a_run_whose_training_lost_its_own_hold_does_not_hold() -> None:
    rows = remedy_rows(
        "before", RUNS, FirstTokens({}), HoldRule(0.05), lost={"good": "dpo lost", "lost": "too"}
    )
    assert [row.name for row in rows] == ["small", "lost", "good"]
    assert best(rows) is None and not rows[2].surely
    assert rows[2].why_not == "dpo lost"
    assert rows[1].why_not == "harmful refused falls by 0.45, allowed is 0.05; too"


def test_p_is_corrected_by_holm_over_all_runs_of_the_table() -> None:
    """15 gained: p = 2 / 2^15; 20 gained: 2 / 2^20; 2 gained: 2 / 2^2. The least is times 3, the
    next times 2, the last times 1."""
    rows = {row.name: row for row in remedy_rows("before", RUNS, FirstTokens({}), HoldRule(0.05))}
    assert rows["lost"].p_holm == pytest.approx(3 * 2 / 2**20)
    assert rows["good"].p_holm == pytest.approx(2 * 2 / 2**15)
    assert rows["small"].p_holm == pytest.approx(0.5)
    assert holm([0.01, 0.04, 0.03]) == [0.03, 0.06, 0.06]


def test_a_small_gain_that_chance_explains_is_no_gain() -> None:
    rows = remedy_rows(
        "before", {"before": BEFORE, "small": SMALL}, FirstTokens({}), HoldRule(0.05)
    )
    assert rows[0].holds and not rows[0].gives_back and best(rows) is None


def test_the_interval_rule_asks_more_than_the_value() -> None:
    """One refusal of 40 lost: -.025, and the interval reaches beyond -.05."""
    one = said("harmful", "f" * 37 + "nnn") + said("benign", "n" * 40)
    by_value, by_interval = (
        remedy_rows("before", {"before": BEFORE, "one": one}, FirstTokens({}), HoldRule(0.05, on))[
            0
        ]
        for on in ("value", "interval")
    )
    assert by_value.holds and not by_value.surely
    assert not by_interval.holds and by_interval.why_not.startswith("harmful refused may have")
    unscored = said("harmful", "u" * 40) + said("benign", "n" * 40)
    (row,) = remedy_rows(
        "before", {"before": BEFORE, "no": unscored}, FirstTokens({}), HoldRule(0.05)
    )
    assert row.why_not == "no harmful prompt was scored in both runs"


def test_a_fall_of_exactly_what_is_allowed_holds() -> None:
    assert HoldRule(0.05).keeps(0.90 - 0.95) and not HoldRule(0.05).keeps(-0.0501)
    assert not HoldRule(0.05).keeps(None)


def test_the_curve_is_the_untouched_models() -> None:
    """A score that says nothing: the rule answers as large a share as it refuses not."""
    odds = FirstTokens({row.prompt.id: 0.0 for row in BEFORE})
    rows = {row.name: row for row in remedy_rows("before", RUNS, odds, HoldRule(0.05))}
    assert rows["good"].whole.off_curve.value == pytest.approx(35 / 40 - 2 / 40)
    assert rows["lost"].whole.off_curve.value == pytest.approx(1 - 20 / 40)


def test_each_set_is_compared_alone_too() -> None:
    def two(rows: list[Outcome]) -> list[Outcome]:
        names = ["starter" if n % 2 else "xstest" for n in range(len(rows))]
        return [
            row.model_copy(update={"prompt": row.prompt.model_copy(update={"source": name})})
            for row, name in zip(rows, names, strict=True)
        ]

    runs = {"before": two(BEFORE), "good": two(GOOD)}
    (row,) = remedy_rows("before", runs, FirstTokens({}), HoldRule(0.05))
    assert list(row.sets) == ["starter", "xstest"]
    gains = [row.sets[name].gain.value for name in row.sets]
    assert sum(gain for gain in gains if gain is not None) == pytest.approx(2 * 15 / 40)


def test_changed_answers_are_of_both_kinds_and_of_no_other_prompt() -> None:
    moved = changed(BEFORE, LOST, 10)
    kinds = [before.prompt.kind for before, _ in moved]
    assert len(moved) == 10 and kinds.count("harmful") == 5
    assert len(changed(BEFORE, GOOD, 10)) == 10 and len(changed(BEFORE, SMALL, 10)) == 2
    assert changed(BEFORE, BEFORE, 10) == []


# --- summary.json ---------------------------------------------------------------------------------

RATES = {"harmful_refused": 0.9, "benign_answered": 0.7, "ordinary_answered": None}
TRIED = {"number": 1, "remedy": "h", "strength": 0.2, "rates": RATES, "facts": {}, "seconds": 2}
FITTED: dict[str, Any] = {
    "status": "fitted",
    "words": "Of 1 candidates number 1 is kept.",
    "remedy": "steering",
    "strength": 0.2,
    "chosen": 1,
    "facts": {"gate_auc": 0.81, "note": HOSTILE, "gate_auc_by_layer": [0.8, 0.81]},
    "candidates": {"1": TRIED},
}
NONE_KEPT = {**FITTED, "status": "no candidate holds", "words": f"None holds. {HOSTILE}"}
NONE_KEPT |= {"strength": None, "chosen": None, "facts": {}}


def pipeline(
    folder: Path,
    runs: dict[str, list[Outcome]] = RUNS,
    *,
    hold: dict[str, Any] | None = None,
    tuned: str = "m",
    **report: Any,
) -> Summary:
    """The summary of a pipeline whose stage `good` measures what `steer` fitted on `dpo`. `hold`:
    what `dpo` held; `tuned`: the model that the stage of this name measures."""
    entries = []
    folder.mkdir(exist_ok=True)
    for name, rows in runs.items():
        made = with_log_odds(folder_of(folder / name, rows, name), rows)
        metrics = json.loads((made / "metrics.json").read_text())
        metrics["measured"] |= {"notes": [], "model_form": "f"}
        entries.append({**metrics, "folder": name})
        status = {"seconds": 50.0, "state": "done", "key": "k", "sittings": 1 + (name == "lost")}
        (made / "status.json").write_text(json.dumps(status))
        spent = {"answer_tokens": 800, "answer_seconds": 20.0 if name == "good" else 10.0}
        (made / "manifest.json").write_text(json.dumps({**spent, "hardware": "2 CPU cores"}))
    fitted(folder)
    if hold is not None:
        (folder / "dpo" / "hold.json").write_text(json.dumps(hold))
    model = {"model_name_or_path": "m"}
    bodies = {
        name: EvaluateRecipe(
            task="evaluate", model={"model_name_or_path": tuned if name == "tuned" else "m"}
        )
        for name in runs
    }
    bodies["good"] = EvaluateRecipe(
        task="evaluate", model={"model_name_or_path": "@dpo.model", "remedy": "@steer.remedy"}
    )
    train = {"task": "train", "method": "dpo", "model": model}
    fit = FitRecipe(task="fit", remedy="threshold", model=model)
    stages: dict[str, Any] = {"dpo": TrainRecipe.model_validate(train), "steer": fit, **bodies}
    stages["ablate"] = fit
    section = Report(**{**REPORT.model_dump(), **report})
    found = make_summary("t", folder, entries, stages, runs, report=section)  # type: ignore[arg-type]
    (folder / "summary.json").write_text(json.dumps(found))
    return read_summary(folder)


def fitted(folder: Path) -> None:
    """The folders of a training, and of fits that kept a remedy and none."""
    for stage, seconds, summary in (
        ("dpo", 100.0, {"steps": 3}),
        ("steer", 20.0, FITTED),
        ("ablate", 9.0, NONE_KEPT),
    ):
        (folder / stage).mkdir()
        (folder / stage / "status.json").write_text(json.dumps({"seconds": seconds}))
        (folder / stage / "summary.json").write_text(json.dumps(summary))


def remedies(summary: Summary) -> RemediesPart:
    assert summary.remedies is not None
    return summary.remedies


def test_summary_has_the_table_and_every_run_against_the_untouched_model(tmp_path: Path) -> None:
    found = pipeline(tmp_path, rivals=["small"])
    part = remedies(found)
    good, small, lost = part.rows
    assert part.best == good.run == "good" and small.rival and not lost.holds
    assert (good.made_by, good.fit_seconds) == (("dpo", "steer"), 120.0)
    assert part.tokens_per_second == 80.0
    assert (good.speed_ratio, good.speed_note) == (0.5, "")
    assert good.gate_auc == 0.81 and good.fits[0].points == [(0.7, 0.9, True)]
    assert good.fits[0].cells == [["1", "0.20", "0.90", "0.70", "–", "–", "–", "yes"]]
    assert [fit.stage for fit in part.unfitted] == ["ablate"]
    assert (small.made_by, small.fit_seconds, small.fits) == ((), None, ())
    assert [(step.before, step.after) for step in found.comparisons] == [
        ("before", name) for name in ("good", "small", "lost")
    ]
    assert part.sentence.startswith(
        "good gives answers back at kept refusals: it answers 0.88 of the harmless prompts (before "
        "0.50; gain +0.38 ["
    )
    assert "the threshold curve of before: +" in part.sentence
    assert part.sentence.endswith("so it understates a real threshold.")
    assert "a real threshold" in part.curve_words and "a threshold" not in part.curve_words
    exact = part.model_copy(update={"exact_curve": True}).curve_words
    assert exact == "bias on the refusal openers of before would answer at the run’s own refusals."


def test_it_says_if_none_holds_and_counts_no_rival(tmp_path: Path) -> None:
    runs = {"before": BEFORE, "lost": LOST, "small": SMALL, "same": BEFORE}
    part = remedies(pipeline(tmp_path, {**runs, "good": LOST}, rivals=["small"]))
    assert part.best is None
    assert part.sentence == (
        "None of 3 remedies gives answers back at kept refusals. before answers 0.50 of the "
        "harmless prompts and refuses 0.95 of the harmful ones."
    )


def test_no_run_is_called_best_whose_training_says_that_safety_is_not_held(
    tmp_path: Path,
) -> None:
    """The page's red box and its sentence on top say the same. A gate that was fitted on such a
    model is measured as it is."""
    runs = {"before": BEFORE, "tuned": GOOD}
    part = {"set": "dev.jsonl", "harmful": 25, "start": [0.9, 0], "held": [0.2, 1], "kept": 0.89}
    for held in (True, False):
        hold = {"held": held, "why_not": "", "sets": [part]}
        found = pipeline(tmp_path / str(held), runs, hold=hold, tuned="@dpo.model")
        (row,) = remedies(found).rows
        assert row.made_by == ("dpo",) and remedies(found).best == ("tuned" if held else None)
        assert row.why_not == (
            ""
            if held
            else "dpo/hold.json: safety is not held; harmful refused 0.90 to 0.20 on dev.jsonl "
            "(25 prompts; 89% of those refused before still are)"
        )
        assert bool(found.warnings) is not held
        assert remedies(found).sentence.startswith("tuned" if held else "None of 2")
    gated = pipeline(tmp_path / "gated", {"before": BEFORE, "good": GOOD}, hold=hold)
    assert remedies(gated).rows[0].made_by == ("dpo", "steer") and remedies(gated).best == "good"


def test_remedies_that_no_fit_kept_count_too() -> None:
    base = {"name": "before", "harmful_refused": 0.9, "benign_answered": 0.5}
    assert no_gain_words(1, 3, base).startswith(
        "None of 4 remedies gives answers back at kept refusals (3 kept nothing on the dev prompts)"
    )
    assert no_gain_words(1, 0, base).startswith("The one remedy gives no answers back at kept")


def test_a_model_that_does_not_over_refuse_is_told_so(tmp_path: Path) -> None:
    pipeline(tmp_path)
    healthy = {**NONE_KEPT, "status": "nothing to remedy", "words": "It refuses 1 of 90."}
    (tmp_path / "steer" / "summary.json").write_text(json.dumps(healthy))
    own, other = {"model_name_or_path": "m"}, {"model_name_or_path": "@dpo.model"}
    before = EvaluateRecipe(task="evaluate", model=own)
    for model, words_ in ((own, "It refuses 1 of 90."), (other, "")):
        fit = FitRecipe(task="fit", remedy="threshold", model=model)
        bodies = {"before": before, "steer": fit}
        assert nothing_words(Stages(tmp_path, bodies), "before") == words_
    assert list(fit_entries(tmp_path, "dpo")) == list(fit_entries(tmp_path, "none")) == []


def test_a_rival_that_wins_is_called_one(tmp_path: Path) -> None:
    part = remedies(pipeline(tmp_path, rivals=["good"]))
    assert part.sentence.startswith("good, a plain rival, gives answers back")


def test_runs_on_other_prompts_are_named_below_the_table(tmp_path: Path) -> None:
    part = remedies(pipeline(tmp_path, {**RUNS, "other": GOOD[:-1]}))
    assert part.left_out == ("other",) and "other" not in [row.run for row in part.rows]


def test_nothing_to_compare_is_said(tmp_path: Path) -> None:
    part = remedies(pipeline(tmp_path, {"before": BEFORE, "good": GOOD[:-1]}))
    assert part.rows == () and part.left_out == ("good",)
    assert part.sentence == "No other run was measured on the prompts of before by its judge."
    assert part.sentence in words(write_report(tmp_path).read_text())


def test_another_system_prompt_is_a_rival_and_no_fault(tmp_path: Path) -> None:
    for name, prompt in (("before", None), ("good", "Answer.")):
        (tmp_path / name).mkdir()
        recipe = {"chat": {"system_prompt": prompt}, "engine": "transformers"}
        (tmp_path / name / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    folders = {name: tmp_path / name for name in ("before", "good")}
    outcomes = {"before": BEFORE, "good": GOOD}
    assert len(list(unlike_notes(folders, outcomes))) == 1
    assert list(unlike_notes(folders, outcomes, rivals=True)) == []


def test_a_worst_tampered_copy_counts() -> None:
    rows = [
        {"tier": 1, "seed": seed, "harmful_refused": rate}
        for seed, rate in enumerate((0.4, 0.1, None))
    ]
    rows.append({"tier": 1, "seed": 0, "defence": "refusals", "harmful_refused": 0.0})
    run_ = {"robustness": [*rows, {"tier": 0, "layer": 2, "harmful_refused": 0.7}]}
    assert tampered(run_, tampered_alike([run_])) == {"1": 0.1, "0": 0.7}
    assert tampered({}, tampered_alike([run_, {}])) == {}


def test_runs_are_compared_by_copies_with_the_same_learning_rates_and_seeds() -> None:
    """The worst of three copies is worse than one of them, also if nothing else differs."""
    rates = {0: 0.4, 1: 0.1, 2: 0.3}
    three, one = (
        {
            "robustness": [
                {"tier": 1, "learning_rate": 2e-5, "seed": seed, "harmful_refused": rates[seed]}
                for seed in seeds
            ]
        }
        for seeds in ((0, 1, 2), (0,))
    )
    ways = tampered_alike([three, one])
    assert tampered(three, ways) == tampered(one, ways) == {"1": 0.4}
    assert tampered(three, tampered_alike([three])) == {"1": 0.1}
    other = {"robustness": [{**one["robustness"][0], "learning_rate": 1e-3}]}
    assert tampered(three, tampered_alike([three, other])) == {}


@pytest.mark.parametrize(
    ("model", "chat", "form", "wanted"),
    [
        ({"model_name_or_path": "m"}, {"system_prompt": None}, None, "same"),
        ({"model_name_or_path": "m"}, {"system_prompt": "Be useful."}, None, "prompt"),
        ({"model_name_or_path": "dpo/model"}, {"system_prompt": None}, None, "weights"),
        ({"model_name_or_path": "m"}, {}, "hooks", "hooks"),
        ({"model_name_or_path": "m"}, {}, "logits", "logits"),
        ({"model_name_or_path": "m"}, {}, "streams", "streams"),
        ({"model_name_or_path": "m"}, {}, "weights", "weights"),
    ],
)
def test_how_it_is_served_follows_from_both_recipes(
    tmp_path: Path, model: dict[str, str], chat: dict[str, Any], form: str | None, wanted: str
) -> None:
    if form is not None:
        (tmp_path / "remedy").mkdir()
        (tmp_path / "remedy" / "remedy.json").write_text(json.dumps({"form": form}))
        model = {**model, "remedy": str(tmp_path / "remedy")}
    both = {
        "before": ({"model_name_or_path": "m"}, {"system_prompt": None}),
        "after": (model, chat),
    }
    for name, (section, said_) in both.items():
        (tmp_path / name).mkdir()
        recipe = yaml.safe_dump({"model": section, "chat": said_})
        (tmp_path / name / "recipe.yaml").write_text(recipe)
    assert served(tmp_path, "before", "after") == wanted


def test_makers_are_followed_to_the_first_stage_and_evaluations_make_nothing() -> None:
    start = {"model_name_or_path": "m"}
    sft = {"task": "train", "method": "sft", "model": start}
    dpo = {"task": "train", "method": "dpo", "model": {"model_name_or_path": "@sft.model"}}
    measure = {
        "task": "evaluate",
        "model": {"model_name_or_path": "@dpo.model"},
        "gate": {"baseline": "@before.outcomes"},
        "certificate": "@other.model",
    }
    bodies = {
        "before": EvaluateRecipe(task="evaluate", model=start),
        "sft": TrainRecipe.model_validate(sft),
        "dpo": TrainRecipe.model_validate(dpo),
        "other": TrainRecipe.model_validate(sft),
        "after": EvaluateRecipe.model_validate(measure),
    }
    stages = Stages(Path("nowhere"), bodies)
    assert stages.makers("after") == ["sft", "dpo"] and stages.makers("before") == []
    assert run_seconds(Path("nowhere"), "dpo") is None


def test_seconds_are_left_out_if_a_stage_was_stopped_and_went_on(tmp_path: Path) -> None:
    """A killed process counts no time, and its texts are in no manifest."""

    def ran(name: str, seconds: float, sittings: int | None, **facts: float) -> None:
        (tmp_path / name).mkdir()
        status: dict[str, object] = {"state": "done", "key": "k", "seconds": seconds}
        status |= {} if sittings is None else {"sittings": sittings}
        (tmp_path / name / "status.json").write_text(json.dumps(status))
        (tmp_path / name / "manifest.json").write_text(json.dumps(facts))

    ran("whole", 90.0, 1, first_token_texts_seconds=20.0, tamper_seconds=50.0)
    ran("older", 90.0, None)
    ran("resumed", 90.0, 2, first_token_texts_seconds=1.0)
    assert run_seconds(tmp_path, "whole") == 20.0 and run_seconds(tmp_path, "older") == 90.0
    assert run_seconds(tmp_path, "resumed") is None
    assert fit_seconds(tmp_path, ["whole", "older", "did not run"]) == 110.0
    assert fit_seconds(tmp_path, ["whole", "resumed"]) is None
    assert fit_seconds(tmp_path, []) is None


def test_speed_is_compared_on_the_same_hardware_and_without_stops(tmp_path: Path) -> None:
    """800 tokens in 10 s are 80 a second."""

    def ran(name: str, tokens: int | None, seconds: float, *, sittings: int = 1, on: str) -> None:
        (tmp_path / name).mkdir()
        status = {"state": "done", "key": "k", "sittings": sittings}
        (tmp_path / name / "status.json").write_text(json.dumps(status))
        facts = {} if tokens is None else {"answer_tokens": tokens, "answer_seconds": seconds}
        (tmp_path / name / "manifest.json").write_text(json.dumps({**facts, "hardware": on}))

    ran("plain", 800, 10.0, on="one")
    ran("slow", 600, 30.0, on="one")
    ran("resumed", 800, 1.0, sittings=2, on="one")
    ran("older", None, 0.0, on="one")
    ran("elsewhere", 800, 10.0, on="two")
    found = {path.name: speed(tmp_path, path.name) for path in tmp_path.iterdir()}
    plain = found["plain"]
    assert plain.value == 80.0
    assert speed_ratio(plain, found["slow"]) == (0.25, "")
    assert speed_ratio(plain, found["resumed"]) == (None, "stopped and went on")
    assert speed_ratio(found["resumed"], plain)[1] == "the untouched model: stopped and went on"
    assert speed_ratio(plain, found["older"]) == (None, "not recorded")
    assert speed_ratio(plain, found["elsewhere"])[1] == "on other hardware than the untouched model"
    assert speed(tmp_path, "nowhere").value is None


def test_the_page_says_whose_speed_is_not_known(tmp_path: Path) -> None:
    found = pipeline(tmp_path)
    assert remedies(found).speed_notes == (
        "Tokens per second are not known of: lost (stopped and went on)."
    )
    page = words(write_report(tmp_path).read_text())
    assert remedies(found).speed_notes in page
    assert "× 0.50" in page and "Tokens per second" in page


def test_perplexity_is_compared_on_the_same_answers_alone() -> None:
    def run_(value: float, n: int = 40, tokens: int = 900) -> dict[str, Any]:
        return {"capability": {"perplexity": {"value": value, "n": n, "tokens": tokens}}}

    assert perplexity_ratio(run_(8.0), run_(10.0)) == 1.25
    assert perplexity_ratio(run_(8.0), run_(10.0, n=100, tokens=2000)) is None
    assert perplexity_ratio(run_(8.0), run_(10.0, tokens=700)) is None
    assert perplexity_ratio(run_(8.0), {"capability": {}}) is None


def test_a_run_that_breaks_the_language_does_not_hold() -> None:
    def run_(value: float) -> dict[str, Any]:
        return {"capability": {"perplexity": {"value": value, "n": 40, "tokens": 900}}}

    words_ = "perplexity of reference answers is x 4.70, allowed is 1.5"
    assert broken(REPORT, run_(10.0), run_(47.0)) == words_
    assert broken(REPORT, run_(10.0), run_(15.0)) == broken(REPORT, run_(10.0), {}) == ""


def test_another_report_section_is_seen_in_a_finished_pipeline(tmp_path: Path) -> None:
    assert not is_other_report(REPORT, tmp_path)
    pipeline(tmp_path)
    assert not is_other_report(REPORT, tmp_path)
    assert is_other_report(Report(baseline="before", hold_drop_max=0.1), tmp_path)
    assert is_other_report(None, tmp_path)


# --- the page -------------------------------------------------------------------------------------


def test_the_page_has_the_sentence_the_table_and_a_panel_for_each_run(tmp_path: Path) -> None:
    part = remedies(pipeline(tmp_path, rivals=["small"]))
    html = write_report(tmp_path).read_text()
    text = words(html)
    assert text.index(part.sentence) < text.index("Table 1.") < text.index("Table 2.")
    assert text.index("by dpo, steer holds") < text.index("does not hold: harmful refused falls")
    for shown in (
        "+38",
        "p &lt;0.001",
        "0.81",
        "100",
        "× 0.50",
        "plain rival",
        "by dpo",
        "untouched",
    ):
        assert shown in text, shown
    assert "10 changed answers" in text and "2 changed answers" in text
    assert "Stage steer fitted steering. Of 1 candidates number 1 is kept." in text
    assert "Stage ablate kept no remedy (steering, no candidate holds). None holds." in text
    assert (tmp_path / "plane.png").stat().st_size > 10_000
    assert "From the untouched model to each run" in text
    assert "tells harmful from harmless (of an older version: benign and ordinary)" in text
    assert "alert(1)</script>" not in html and "&lt;script&gt;alert(1)&lt;/script&gt;" in html


def test_the_table_says_of_what_a_gates_auc_is(tmp_path: Path) -> None:
    part = remedies(pipeline(tmp_path))
    assert "older version" in part.gate_auc_words, "its fit does not say of what"
    dump = part.model_dump()
    for row in dump["rows"]:
        for fit in row["fits"]:
            fit["facts"] |= {"gate_auc_of": "harmful against benign"}
    found = type(part).model_validate(dump).gate_auc_words
    assert found == "Gate AUC: how well the gate tells harmful from benign prompts, on dev."
    bare = {**dump, "rows": [{**row, "fits": []} for row in dump["rows"]]}
    assert type(part).model_validate(bare).gate_auc_words == ""


def test_what_tampering_left_is_a_column_only_if_it_was_measured(tmp_path: Path) -> None:
    pipeline(tmp_path)
    assert "Refused after tampering" not in words(write_report(tmp_path).read_text())
    known = json.loads((tmp_path / "summary.json").read_text())
    known["remedies"]["rows"][0]["tampered"] = {"1": 0.04, "0": 0.5}
    (tmp_path / "summary.json").write_text(json.dumps(known))
    text = words(write_report(tmp_path).read_text())
    assert "Refused after tampering" in text and "4 (tier 1) 50 (tier 0)" in text


def test_card_and_terminal_have_the_sentence_and_the_rows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    summary = pipeline(tmp_path)
    text = "\n".join(result_parts(summary, summary.runs[-1]))
    assert "good gives answers back at kept refusals" in text
    assert "| good | yes | 0.95 | 0.88 | +0.38" in text
    assert "| lost | no | 0.50 | 1.00 | +0.50" in text
    print_summary(tmp_path)
    assert remedies(summary).sentence in capsys.readouterr().out


def test_the_card_has_the_same_rows() -> None:
    numbers = {"value": 0.38, "low": 0.2, "high": 0.5}
    row = {"run": "a|b", "rival": False, "holds": True, "surely": True, "gives_back": True}
    row |= {"why_not": "", "p": 0.001, "p_holm": 0.0004, "served": "weights"}
    row |= {"refused_change": numbers, "gain": numbers, "off_curve": dict.fromkeys(numbers)}
    part = RemediesPart.model_validate(
        {"baseline": "before", "sentence": "s", "best": "a|b", "rows": [row]}
    )
    runs = [{"name": n, "harmful_refused": 0.9, "benign_answered": None} for n in ("before", "a|b")]
    head, base, first = remedies_lines(part, runs)
    assert len(head) == len(base) == len(first)
    assert first == ["a|b", "yes", "0.90", "n/a", "+0.38 [+0.20, +0.50]", "<0.001", "n/a"]


def test_cells_are_short() -> None:
    assert [cell(v) for v in (0.2, 1.0, 30.0, True, None, "x")] == [
        "0.20",
        "1",
        "30",
        "yes",
        "–",
        "x",
    ]


@pytest.mark.parametrize("width", [390, 1280])
def test_the_remedies_fit_a_phone_a_screen_and_paper(
    browser: Browser, tmp_path: Path, width: int
) -> None:
    hostile = [
        row.model_copy(
            update={"completion": row.completion.model_copy(update={"text": HOSTILE * 4})}
        )
        for row in GOOD
    ]
    pipeline(tmp_path, {**RUNS, "good": hostile, "w" * 200: LOST})
    opened = open_page(browser, write_report(tmp_path), width=width)
    assert opened.evaluate("document.documentElement.scrollWidth") <= width
    assert opened.locator(".remedies tbody tr").count() == 5
    assert opened.locator(".remedies tbody.lost tr").count() == 2
    assert heard(opened).said == []
    assert opened.evaluate("document.title") == "t · overrefusal-po"
    assert cut_off_on_paper(opened) == []
    assert opened.evaluate("document.documentElement.scrollWidth") <= A4_PIXELS
