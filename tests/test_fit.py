"""The stage fit: which candidate is kept, by hand, and the whole stage on tiny models."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Style
from safetensors.torch import load_file
from test_selection import ANSWER, REFUSAL, THINGS, asked, taught

from overrefusal_po.engines.transformers import TransformersEngine
from overrefusal_po.fit.choice import DevRates, Tried, chosen, nothing_to_remedy, why_none
from overrefusal_po.model import load as models
from overrefusal_po.model.chat import ChatTemplate
from overrefusal_po.model.remedied import remedied
from overrefusal_po.model.remedy import load_remedy
from overrefusal_po.pipeline import run_stage
from overrefusal_po.recipe.load import check_body
from overrefusal_po.records import Prompt, Sampling, read_jsonl, write_jsonl

# --------------------------------------------------------------------------------- values by hand


def rates(harmful: float | None, benign: float | None, *, refused: int = 50, n: int = 100) -> Any:
    """Rates on `n` prompts of each kind."""
    counts = dict.fromkeys(("harmful_refused", "benign_answered", "ordinary_answered"), n)
    return DevRates(
        harmful_refused=harmful,
        benign_answered=benign,
        ordinary_answered=None,
        degenerate=0.0,
        intervals=dict.fromkeys(counts),
        n=counts,
        unscored=dict.fromkeys(counts, 0),
        benign_refused=refused,
    )


def tried(number: int, harmful: float, benign: float, *, strength: float = 1.0) -> Tried:
    """A candidate's row."""
    found = rates(harmful, benign)
    return Tried(number=number, remedy="x", strength=strength, rates=found, facts={}, seconds=None)


START = rates(0.9, 0.5)


def test_the_candidate_that_answers_most_is_kept_of_those_that_hold() -> None:
    rows = [tried(1, 0.9, 0.55), tried(2, 0.85, 0.7), tried(3, 0.84, 0.9)]
    best = chosen(rows, START, tolerance=0.05)
    assert best is not None
    assert best.number == 2


def test_a_tolerance_of_a_tenth_is_no_rounding_error() -> None:
    """.35 - .05 is a little above .3 in floating point."""
    assert chosen([tried(1, 0.3, 0.6)], rates(0.35, 0.5), tolerance=0.05) is not None


def test_of_equal_candidates_the_weaker_one_is_kept_then_the_first() -> None:
    rows = [tried(1, 0.9, 0.6, strength=-3), tried(2, 0.86, 0.6, strength=-2)]
    rows += [tried(3, 0.9, 0.6, strength=2)]
    best = chosen(rows, START, tolerance=0.05)
    assert best is not None
    assert best.number == 2


def test_without_a_candidate_that_holds_none_is_kept() -> None:
    rows = [tried(1, 0.7, 0.9), tried(2, 0.8, 0.8)]
    assert chosen(rows, START, tolerance=0.05) is None
    status, words = why_none(rows, START, 0.05)
    assert status == "no candidate holds"
    assert "harmful_refused 0.80" in words


def test_a_candidate_that_answers_no_more_is_not_kept() -> None:
    rows = [tried(1, 0.9, 0.5), tried(2, 0.95, 0.4)]
    assert chosen(rows, START, tolerance=0.05) is None
    assert why_none(rows, START, 0.05)[0] == "no candidate gains"


def test_rates_on_too_few_verdicts_hold_nothing() -> None:
    found = tried(1, 0.9, 0.9)
    unscored = {**found.rates.unscored, "harmful_refused": 50}
    lacking = found.rates.model_copy(update={"unscored": unscored})
    row = found.model_copy(update={"rates": lacking})
    assert chosen([row], START, tolerance=0.05) is None


@pytest.mark.parametrize(
    ("refused", "n", "remedy"), [(4, 20, False), (5, 20, True), (5, 120, False), (6, 120, True)]
)
def test_a_model_over_refuses_from_five_prompts_and_a_twentieth_on(
    refused: int, n: int, remedy: bool
) -> None:
    why = nothing_to_remedy(rates(0.9, 0.5, refused=refused, n=n))
    assert (why == "") is remedy
    assert remedy or f"refuses {refused} of {n}" in why


# ------------------------------------------------------------------------------- the whole stage

DEV_THINGS = ["a picture", "a letter", "the door", "a pack", "the gate", "a book"]


@pytest.fixture(scope="module")
def wary(styles: dict[str, Style], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model that refuses everything; what is benign with less certainty."""
    rows = asked(THINGS, "benign", REFUSAL) * 2 + asked(THINGS, "benign", ANSWER)
    rows += asked(THINGS, "harmful", REFUSAL) * 3
    return taught(styles["llama"], rows, tmp_path_factory.mktemp("wary"), steps=60, batch=24)


@pytest.fixture(scope="module")
def sensible(styles: dict[str, Style], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model that answers what is benign."""
    rows = asked(THINGS, "benign", ANSWER) + asked(THINGS, "harmful", REFUSAL)
    return taught(styles["llama"], rows, tmp_path_factory.mktemp("sensible"), steps=40, batch=16)


def body_of(model: Path, folder: Path, **more: Any) -> Any:
    """A fit recipe of a tiny model on prompts in files."""
    folder.mkdir(parents=True, exist_ok=True)
    ordinary = [Prompt.of(f"Describe {thing}.", kind="general") for thing in THINGS]
    for name, rows in (
        ("harmful", asked(THINGS, "harmful")),
        ("benign", asked(THINGS, "benign")),
        ("ordinary", ordinary),
        ("dev", asked(DEV_THINGS, "harmful") + asked(DEV_THINGS, "benign")),
    ):
        write_jsonl(folder / f"{name}.jsonl", rows)
    data = {name: str(folder / f"{name}.jsonl") for name in ("harmful", "benign", "ordinary")}
    values = {
        "task": "fit",
        "remedy": "threshold",
        "model": {"model_name_or_path": str(model), "dtype": "float32"},
        "data": {**data, "choose": {"sets": [str(folder / "dev.jsonl")]}},
        "generation": {"max_new_tokens": 16, "batch_size": 8},
        **more,
    }
    return check_body(values, "test")


@pytest.fixture(scope="module")
def done(wary: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """A fit of a threshold that ran: its summary and folder."""
    folder = tmp_path_factory.mktemp("fit")
    return run_stage(body_of(wary, folder / "data"), "fit", folder / "run"), folder / "run"


def test_a_fit_gives_answers_back_and_keeps_refusals(done: Any) -> None:
    found, folder = done
    assert found["status"] == "fitted"
    assert found["before"]["benign_answered"] == 0.0
    assert found["after"]["benign_answered"] == 1.0
    assert found["after"]["harmful_refused"] == found["before"]["harmful_refused"] == 1.0
    assert found["form"] == "logits"
    assert not (folder / "model").exists()
    known = json.loads((folder / "remedy" / "remedy.json").read_text())
    assert known["anchors"]["train"]["harmful"]["n"] == len(THINGS)
    assert known["anchors"]["dev"]["benign"]["n"] == len(DEV_THINGS)
    assert len(known["candidates"]) == 6
    assert known["chosen"] == found["chosen"]
    assert {"name", "form", "strength", "settings", "base", "versions"} <= known.keys()
