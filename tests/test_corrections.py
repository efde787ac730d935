"""corrections.py: rates without the judge's errors; values worked by hand, coverage by a small
simulation."""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from overrefusal_po.evaluate.corrections import (
    Confusion,
    answered_rate,
    corrected,
    corrected_rates,
    lang_reiczigel,
)
from overrefusal_po.evaluate.intervals import Rate
from overrefusal_po.records import Completion, Kind, Outcome, Prompt, Refusal, Sampling, Verdict

pytestmark = pytest.mark.filterwarnings("error")

GOOD = Confusion(refused=50, refused_seen=40, answered=50, answered_seen=45)
PERFECT = Confusion(refused=1e9, refused_seen=1e9, answered=1e9, answered_seen=1e9)


def outcome(
    kind: Kind, number: int, refusal: Refusal | None, *, degenerate: bool = False, **of: Any
) -> Outcome:
    prompt = Prompt.of(f"prompt {number}", kind=kind, **of)
    completion = Completion(
        id=f"{kind}{number}",
        prompt_id=prompt.id,
        text="t",
        model="m",
        engine="e",
        sampling=Sampling(),
    )
    verdict = Verdict(
        completion_id=completion.id, judge="j", version="1", refusal=refusal, degenerate=degenerate
    )
    return Outcome(prompt=prompt, completion=completion, verdict=verdict)


def test_rogan_and_gladen_by_hand() -> None:
    """Sensitivity 0.8, specificity 0.9, 45 of 100 seen: (0.45 + 0.9 - 1) / (0.8 + 0.9 - 1) = 0.5"""
    found = corrected(45, 100, GOOD, unscored=3)
    assert (found.value, found.n, found.unscored) == (pytest.approx(0.5), 100, 3)
    assert found.low is not None and found.high is not None and found.low < 0.4 < 0.6 < found.high


def test_the_limits_of_lang_and_reiczigel_by_hand() -> None:
    """z² = 3.841459; q = (45 + 1.920729) / 103.841459 = 0.451850; sensitivity 41/52 = 0.788462;
    specificity 46/52 = 0.884615; p = 0.336465 / 0.673077 = 0.499891; of sensitivity 0.788462 ·
    0.211538 / 52 = 0.003207513; of specificity 0.884615 · 0.115385 / 52 = 0.001962904; shift =
    7.682918 · (0.499891 · 0.003207513 - 0.500109 · 0.001962904) = 0.00477690; spread = 1.959964 ·
    sqrt(0.247682 / 103.841459 + 0.249891 · 0.003207513 + 0.250109 · 0.001962904) / 0.673077 =
    1.959964 · sqrt(0.002385193 + 0.000801529 + 0.000490940) / 0.673077 = 0.176592"""
    low, high = lang_reiczigel(45, 100, 40, 50, 45, 50)
    assert (float(low), float(high)) == (
        pytest.approx(0.328076, abs=2e-5),
        pytest.approx(0.681260, abs=2e-5),
    )


def test_a_judge_without_errors_leaves_the_rate_alone() -> None:
    """And leaves the interval of Agresti and Coull: 36.920729 / 103.841459... for 35 of 100, 0.3555
    ± 0.0921."""
    found = corrected(35, 100, PERFECT)
    q = 36.920729 / 103.841459
    half = 1.959964 * (q * (1 - q) / 103.841459) ** 0.5
    assert found[:3] == (
        pytest.approx(0.35),
        pytest.approx(q - half, abs=1e-5),
        pytest.approx(q + half, abs=1e-5),
    )


def test_a_corrected_rate_stays_between_0_and_1_and_its_interval_holds_it() -> None:
    for seen in range(0, 101, 4):
        found = corrected(seen, 100, GOOD)
        assert found.value is not None and found.low is not None and found.high is not None
        assert 0 <= found.low <= found.value <= found.high <= 1
    assert corrected(5, 100, GOOD).value == 0  # fewer than the judge's false alarms alone
    assert corrected(95, 100, GOOD).value == 1


def test_a_certificate_of_fewer_labels_gives_a_wider_interval() -> None:
    def width(labels: int, **effective: float) -> float:
        confusion = Confusion(
            refused=labels,
            refused_seen=0.8 * labels,
            answered=labels,
            answered_seen=0.9 * labels,
            **effective,
        )
        found = corrected(45, 100, confusion)
        assert found.low is not None and found.high is not None
        return found.high - found.low

    assert width(20) > width(50) > width(500)
    assert width(50, refused_effective=20, answered_effective=20) == pytest.approx(
        width(20), abs=1e-9
    )


@pytest.mark.parametrize(
    ("confusion", "why"),
    [
        (Confusion(refused=0, refused_seen=0, answered=9, answered_seen=9), "hold no refusal"),
        (Confusion(refused=9, refused_seen=9, answered=0, answered_seen=0), "hold no answer"),
        (
            Confusion(refused=10, refused_seen=3, answered=10, answered_seen=7),
            "30% of the refusals and 70%",
        ),
    ],
)
def test_where_no_correction_is_possible_it_is_said(confusion: Confusion, why: str) -> None:
    with pytest.raises(ValueError, match=f"no correction is possible.*{why}"):
        corrected(5, 10, confusion)
    found = corrected_rates([outcome("harmful", 1, "full")], {"harmful": confusion})
    assert (
        found.harmful_refused is None
        and why.split("%")[0] in found.notes[0]
        and found.notes[0].startswith("harmful prompts:")
    )


def test_a_kind_without_certificate_is_said() -> None:
    found = corrected_rates([outcome("benign", 1, "none")], {"harmful": GOOD})
    assert (found.harmful_refused, found.benign_answered) == (None, None)
    assert found.notes == (
        "benign prompts: no correction is possible: the certificate was made without benign "
        "prompts.",
    )


def test_nor_is_what_is_not_refused_and_not_degenerate() -> None:
    """40 of 100 seen refused with sensitivity .8 and specificity .9: refused (0.4 - 0.1) / 0.7 =
    3/7, not refused 4/7; 12 of the 60 others are degenerate: 4/7 · 48/60 = 16/35."""
    rows = [
        outcome("benign", i, "partial" if i < 40 else "none", degenerate=40 <= i < 52)
        for i in range(100)
    ]
    found = corrected_rates(rows, {"benign": GOOD})
    assert found.benign_answered is not None and found.benign_answered.value == pytest.approx(
        16 / 35
    )
    assert found.benign_answered.low is not None and found.benign_answered.high is not None
    assert found.benign_answered.low < 16 / 35 < found.benign_answered.high
    assert (
        found.as_dict()["benign_answered"]["n"] == 100
        and found.as_dict()["harmful_refused"] is None
    )


def test_a_looping_refusal_counts_as_refused_and_not_as_degenerate() -> None:
    rows = [outcome("benign", i, "full" if i < 5 else "none", degenerate=i < 5) for i in range(10)]
    found = corrected_rates(rows, {"benign": PERFECT})
    assert found.benign_answered is not None and found.benign_answered.value == pytest.approx(0.5)


def test_nor_without_degenerate_responses_mirrors_the_refusals() -> None:
    assert answered_rate(Rate(0.25, 0.125, 0.5, 8, 1), 6, 0) == (0.75, 0.5, 0.875, 8, 1)


def test_the_limits_of_a_nor_with_degenerate_responses_by_hand() -> None:
    """Refused 0.2 [0.1, 0.3], none degenerate 8 of 10: 0.64; Wilson of 8/10 is [0.490162,
    0.943318].

    low = 0.64 - sqrt((0.8 · 0.1)² + (0.8 · 0.309838)²) = 0.379553; high = 0.64 + sqrt((0.8 · 0.1)²
    + (0.8 · 0.143318)²)
    """
    found = answered_rate(Rate(0.2, 0.1, 0.3, 12, 0), 8, 2)
    assert found[:3] == pytest.approx((0.64, 0.64 - 0.260459, 0.64 + 0.139820), abs=2e-5)


def test_unscored_outcomes_are_left_out_and_counted_and_clusters_widen() -> None:
    alone = corrected_rates(
        [outcome("harmful", i, "full" if i % 2 else "none") for i in range(40)], {"harmful": GOOD}
    )
    shared = corrected_rates(
        [
            *(
                outcome("harmful", i, "full" if i // 4 % 2 else "none", original_id=str(i // 4))
                for i in range(40)
            ),
            outcome("harmful", 40, None),
        ],
        {"harmful": GOOD},
    )
    assert alone.harmful_refused is not None and shared.harmful_refused is not None
    assert alone.harmful_refused.value == shared.harmful_refused.value and (
        shared.harmful_refused.n,
        shared.harmful_refused.unscored,
    ) == (40, 1)
    assert (
        shared.harmful_refused.low is not None
        and alone.harmful_refused.low is not None
        and shared.harmful_refused.low < alone.harmful_refused.low
    )


def coverage() -> Any:
    """benchmarks/coverage.py as a module."""
    file = Path(__file__).parent.parent / "benchmarks" / "coverage.py"
    spec = importlib.util.spec_from_file_location("coverage_benchmark", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_coverage_over_the_grid_is_what_the_interval_promises() -> None:
    """80 cells of 1,000 replicates: a cell's standard error is 0.7 points. Mean 93–97 %, no cell
    under 90."""
    benchmark, rng = coverage(), np.random.default_rng(1)
    found = np.array([benchmark.covered(world, 1000, rng) for world in benchmark.WORLDS])
    assert len(found) == 80
    assert 0.93 <= found.mean() <= 0.97
    assert found.min() >= 0.90


def test_a_certificate_that_does_not_transfer_corrects_wrongly() -> None:
    benchmark, rng = coverage(), np.random.default_rng(1)
    world = benchmark.World(0.9, 0.95, 0.99, 450, 450)
    assert benchmark.covered(world, 500, rng) > 0.9
    assert benchmark.covered(world, 500, rng, drift=(-0.15, 0)) < 0.2
