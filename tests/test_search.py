"""recipe/search.py and train/search.py: what may be searched; which trial is kept; a search that is
killed; what log, card and files say of it."""

import json
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import Style
from test_selection import ANSWER, REFUSAL, THINGS, asked, taught

from overrefusal_po.model import load as models
from overrefusal_po.pairs.make import written_pairs
from overrefusal_po.pipeline import run_stage, stage_inputs
from overrefusal_po.prompts import read_source
from overrefusal_po.recipe.load import check_body
from overrefusal_po.recipe.search import points, settings_words, trained_bodies
from overrefusal_po.recipe.two_sided import Hold, Search
from overrefusal_po.records import PreferencePair, write_jsonl
from overrefusal_po.run.keys import run_key
from overrefusal_po.train.held import Decision, Rates, first_token_auc
from overrefusal_po.train.hold_result import HoldEntry, together, worst_miss
from overrefusal_po.train.preference import in_share
from overrefusal_po.train.search import known_trials, train_or_search
from overrefusal_po.train.search_result import (
    Trial,
    brings_nothing,
    failed_trial,
    kept_trial,
    measured_trial,
    table_lines,
    why_kept,
)

BASE: dict[str, Any] = {
    "task": "train",
    "method": "dpo",
    "model": {"model_name_or_path": "my/model"},
    "hold": {"sets": ["starter"]},
}
LONG = ("max_steps", "save_steps", "logging_steps")
SPACE = {"trainer.learning_rate": [1e-4, 2e-4], "trainer.beta": [0.1, 0.3]}


def checked(**more: Any) -> Any:
    """A checked recipe that trains nothing here."""
    return check_body({**BASE, **more}, "test")


# -------------------------------------------------------------------------------- the recipe's keys


def test_the_whole_grid_is_tried_in_its_order() -> None:
    found = [settings_words(p) for p in points(Search(space=SPACE), seed=0)]
    assert found == [
        "trainer.learning_rate 0.0001, trainer.beta 0.1",
        "trainer.learning_rate 0.0001, trainer.beta 0.3",
        "trainer.learning_rate 0.0002, trainer.beta 0.1",
        "trainer.learning_rate 0.0002, trainer.beta 0.3",
    ]


def test_fewer_trials_are_points_that_the_seed_draws() -> None:
    search, whole = Search(space=SPACE, trials=3), points(Search(space=SPACE), seed=0)
    drawn = [points(search, seed=seed) for seed in range(6)]
    assert drawn[0] == points(search, seed=0)
    assert len({json.dumps(found) for found in drawn}) > 1
    for found in drawn:
        assert len({json.dumps(point) for point in found}) == 3
        assert all(point in whole for point in found)


def test_a_trial_is_the_recipe_with_its_settings() -> None:
    space = {**SPACE, "data.harmful_share": [0.4, 0.5]}
    body = checked(search={"space": space}, trainer={"max_steps": 7})
    one = trained_bodies(body)[1]
    assert one.trainer == {"max_steps": 7, "learning_rate": 1e-4, "beta": 0.1}
    assert one.data == {**body.data, "harmful_share": 0.5}
    assert one.search is None
    assert trained_bodies(one) == [one]


@pytest.mark.parametrize(
    "given",
    [
        {"trainer": {"learning_rate": [1e-4, 2e-4], "beta": [0.1, 0.3]}},
        {**SPACE, "trainer.beta": [9.0, 8.0], "trainer": {"beta": [0.1, 0.3]}},
        {**SPACE, "trainer.max_steps": None},
    ],
)
def test_an_override_gives_a_space_in_sections(given: Any) -> None:
    """--search.space.trainer.beta=[0.1,0.3] arrives so, and the last list of a key counts."""
    assert checked(search={"space": given}).search.space == SPACE


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"space": {"trainer.lerning_rate": [1, 2]}}, "Did you mean learning_rate"),
        ({"space": {"trainer.beta": [0.1, "x"]}}, r"search\.space: trainer\.beta is 'x' \(text\)"),
        ({"space": {"trainer.beta": 0.1}}, r"search\.space\.trainer\.beta is 0\.1: .* valid list"),
        ({"space": {"trainer.beta": []}}, r"search\.space\.trainer\.beta is an empty list"),
        ({"space": {"trainer.beta": [0.1]}}, "one combination only"),
        ({"space": {}}, "one combination only"),
        ({"space": {"trainer.beta": [0.1, 0.1]}}, "has 0.1 twice"),
        ({"space": {"model.lora_r": [8, 16]}}, r"no trial may change model\.lora_r\. Allowed"),
        ({"space": {"hold.aim": ["both", "answers"]}}, r"no trial may change hold\.aim"),
        ({"space": {"data.pairs": ["a", "b"]}}, r"no trial may change data\.pairs.* data\.opening"),
        ({"space": {"trainer.seed": [0, 1]}}, r"no trial may change trainer\.seed"),
        ({"space": {"trainer.output_dir": ["a", "b"]}}, "use run_dir instead"),
        ({"space": {"data.opning": [1, 2]}}, "Did you mean opening"),
        ({"space": {"data.opening": [3, 0]}}, r"data\.opening is 0: .* greater than 0"),
        ({"space": SPACE, "trials": 5}, r"search\.trials is 5, but .* 4 combinations"),
        ({"space": SPACE, "trials": 1}, "greater than 1"),
        ({"space": SPACE, "trails": 3}, "Did you mean trials"),
        ({"space": {f"trainer.{k}": [*range(1, 12)] for k in LONG}}, "Say how many"),
    ],
)
def test_a_fault_of_a_search_is_a_sentence(more: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        checked(search=more)


def test_a_search_needs_hold() -> None:
    with pytest.raises(ValueError, match="search is given without hold.* Add hold"):
        checked(search={"space": SPACE}, hold=None)


def test_a_value_that_a_method_refuses_is_found() -> None:
    space = {"trainer.per_device_train_batch_size": [1, 8]}
    with pytest.raises(ValueError, match=r"search\.space: .*per_device_train_batch_size is 1"):
        checked(method="kto", search={"space": space})


def test_another_space_is_another_run() -> None:
    found = [checked(search={"space": SPACE, **more}) for more in ({}, {"trials": 2})]
    found.append(checked(search={"space": {**SPACE, "trainer.beta": [0.1, 0.2]}}))
    assert len({run_key(body.model_dump(mode="json"), {}) for body in found}) == 3


def test_several_processes_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from overrefusal_po.run.folder import Run

    body = checked(search={"space": SPACE})
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="one process; 2 were launched"):
        train_or_search(body, lambda writer: Run.open(tmp_path / "r", {}, {}, writer=writer))


def test_a_tracker_is_refused(tmp_path: Path) -> None:
    body = checked(search={"space": SPACE}, trainer={"report_to": "wandb"})
    with pytest.raises(ValueError, match="report_to is .*wandb.* Take report_to out"):
        run_stage(body, "test", tmp_path / "run")
    assert not (tmp_path / "run").exists()


# --------------------------------------------------------------------------------- the share of pairs


def test_a_share_keeps_the_pairs_that_are_drawn_first() -> None:
    pairs = written_pairs(read_source("starter", "train"))[:6]
    harmful = [p.model_copy(update={"kind": "harmful"}) for p in (pair.prompt for pair in pairs)]
    rows = [pair.model_copy(update={"prompt": p}) for pair, p in zip(pairs, harmful, strict=True)]
    mixed = [rows[0], pairs[1], rows[2], pairs[3], rows[4], rows[5]]
    assert in_share([5, 4, 3, 2, 1, 0], mixed, None) == [5, 4, 3, 2, 1, 0]
    assert in_share([5, 4, 3, 2, 1, 0], mixed, 0.5) == [5, 4, 3, 1]
    assert in_share([5, 4, 3, 2, 1, 0], mixed, 0.8) == [5, 4, 3, 2, 0]
    with pytest.raises(ValueError, match=r"harmful_share is 0\.5, but 0 of the 2 pairs"):
        in_share([1, 3], mixed, 0.5)


# ---------------------------------------------------------------------------- which trial is kept


def entry(
    *sets: tuple[int, int, float, float, float, float], held: bool = True, bias: float = 0.0
) -> HoldEntry:
    """hold.json of sets (harmful, benign, start refused, start answered, refused, answered)."""
    return {
        "held": held,
        "bias": bias,
        "why_not": "",
        "openers": ["Sorry"],
        "unscored": 0,
        "agrees": None,
        "first_token_auc": 0.9,
        "sets": [
            {
                "harmful": harmful,
                "benign": benign,
                "start": Rates(refused, answered),
                "trained": Rates(0.0, 0.0),
                "held": Rates(after, useful),
            }
            for harmful, benign, refused, answered, after, useful in sets
        ],
        "curve": [],
    }


def trial(number: int, refused: float, answered: float, *, held: bool = True, **of: Any) -> Trial:
    """A trial on one set of ten and ten prompts; the start policy refuses .8 and answers .5."""
    found = entry((10, 10, 0.8, 0.5, refused, answered), held=held)
    settings = {"trainer.beta": number / 10}
    return measured_trial(number, settings, found, of=Hold(**of), seconds=60)


def test_sets_count_by_their_prompts() -> None:
    found = entry((30, 10, 0.8, 0.5, 0.9, 0.2), (10, 30, 0.4, 0.7, 0.5, 0.6))["sets"]
    assert together(found, "held") == pytest.approx((0.8, 0.5))
    assert together(found, "start") == pytest.approx((0.7, 0.65))
    assert together([], "held") == (None, None)


def test_the_worst_set_says_what_is_missed() -> None:
    found = entry((9, 9, 0.8, 0.5, 0.7, 0.9), (9, 9, 0.4, 0.5, 0.1, 0.9))["sets"]
    assert worst_miss(found, 0.02) == pytest.approx(0.28)
    assert worst_miss(found, 0.3) == 0.0


def test_the_trial_that_holds_and_answers_most_is_kept() -> None:
    rows = [trial(1, 0.8, 0.6), trial(2, 0.78, 0.7), trial(3, 0.3, 0.95, held=False)]
    assert kept_trial(rows) is rows[1]
    assert rows[2].score == pytest.approx(-0.48)
    assert why_kept(rows, of=Hold()) == (
        "Trial 2 of 3 is kept: of the 2 that hold the stated safety, it answers most"
    )
    assert not brings_nothing(rows[1])


def test_of_equal_trials_the_safer_one_is_kept_then_the_earlier() -> None:
    rows = [trial(1, 0.8, 0.7), trial(2, 0.9, 0.7), trial(3, 0.9, 0.7)]
    assert kept_trial(rows) is rows[1]


def test_both_rates_count_if_hold_aims_at_both() -> None:
    rows = [trial(1, 0.8, 0.7, aim="both"), trial(2, 1.0, 0.6, aim="both")]
    assert kept_trial(rows) is rows[1]
    assert why_kept(rows, of=Hold(aim="both")).endswith("it has the greatest sum of both rates")


def test_if_none_holds_the_nearest_is_kept_and_that_is_said() -> None:
    rows = [trial(1, 0.2, 0.9, held=False), trial(2, 0.7, 0.6, held=False)]
    assert kept_trial(rows) is rows[1]
    assert why_kept(rows, of=Hold()) == (
        "NO TRIAL HOLDS the stated safety. Trial 2 of 2 is kept: its worst set misses it least, by "
        "0.08"
    )


def test_a_trial_without_numbers_is_never_kept() -> None:
    rows = [failed_trial(1, {"trainer.beta": 0.1}, "The loss became NaN", 3.0)]
    assert kept_trial(rows) is None
    rows.append(trial(2, 0.0, 0.0, held=False))
    assert kept_trial(rows) is rows[1]


def test_the_table_begins_with_the_start_policy_and_the_best() -> None:
    failed = failed_trial(3, {"trainer.beta": 0.3}, "The loss became NaN", 3.0)
    rows = [trial(1, 0.8, 0.45), trial(2, 0.79, 0.7), failed]
    assert list(table_lines(rows)) == [
        "start policy: harmful refused 0.80, benign answered 0.50",
        "trial 2: trainer.beta 0.2: holds, harmful refused 0.79, benign answered 0.70, bias +0.00, "
        "first-token AUC 0.90 (60 s)",
        "trial 1: trainer.beta 0.1: holds, harmful refused 0.80, benign answered 0.45, bias +0.00, "
        "first-token AUC 0.90 (60 s)",
        "trial 3: trainer.beta 0.3: no numbers: The loss became NaN (3 s)",
    ]
    assert brings_nothing(rows[0])


def test_the_first_token_separates_by_flip_points() -> None:
    """Of the four pairs three are in order, and one is a tie."""
    rows = [
        Decision(0, kind == "harmful", flip, opened=True, other=False)
        for kind, flip in (("harmful", -1.0), ("harmful", 1.0), ("benign", 1.0), ("benign", 2.0))
    ]
    assert first_token_auc(rows) == pytest.approx(3.5 / 4)
    assert first_token_auc(rows[:2]) is None
