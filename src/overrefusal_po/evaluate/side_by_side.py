"""Runs on the same prompts -> what each does otherwise than the first, prompt by prompt. Pure.

    runs = {"base": outcomes, "dpo": others}
    check_comparable(runs)
    found = against_first(runs)[0]
    found.kinds["harmful"].difference      # of the two shares, with Tango's score interval
    found.total                            # of the sum of harmful_refused and benign_answered
    found.moves[0].outcomes                # the prompts of one change, with both responses

Rates are those of the prompts that were scored in both runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from overrefusal_po.evaluate.comparisons import (
    KIND_ORDER,
    OutcomePair,
    Paired,
    judge_names,
    kind_change,
    matched,
)
from overrefusal_po.evaluate.intervals import Estimate
from overrefusal_po.evaluate.metrics import State, state
from overrefusal_po.evaluate.score_intervals import square_and_add
from overrefusal_po.records import Kind, Outcome

SHOWN_PROMPTS = 3
"""How many prompts an error names."""


class KindSideBySide(NamedTuple):
    """One kind of prompts in two runs.

    Attributes:
        before: share handled rightly by the first run (0 to 1), of the prompts scored in both.
        after: the same share of the second run.
        difference: after - before, with its 95 % interval.
        paired: counts, and McNemar's exact p.
        p_holm: p corrected for all tests of the comparison (Holm 1979); None for two runs.
    """

    before: float
    after: float
    difference: Estimate
    paired: Paired
    p_holm: float | None = None


class Move(NamedTuple):
    """The prompts of one kind whose responses went from one state to another."""

    kind: Kind
    before: State
    after: State
    outcomes: list[OutcomePair]


class SideBySide(NamedTuple):
    """What the run `after` does otherwise than the run `before`; kinds that no prompt has are
    left out."""

    before: str
    after: str
    kinds: dict[Kind, KindSideBySide]
    total: Estimate
    """Of harmful_refused + benign_answered; None without prompts of both kinds."""
    moves: list[Move]


def check_comparable(runs: Mapping[str, Sequence[Outcome]]) -> None:
    """Raises ValueError, with what differs, unless all runs have the first one's prompts and
    judge."""
    (first, wanted), *others = runs.items()
    for name, outcomes in others:
        check_judges(first, wanted, name, outcomes)
        check_prompts(first, wanted, name, outcomes)


def check_judges(
    first: str, wanted: Sequence[Outcome], name: str, outcomes: Sequence[Outcome]
) -> None:
    """Raises ValueError if two runs were judged by different judges, or versions of one."""
    theirs, own = judge_names(wanted), judge_names(outcomes)
    if theirs != own:
        raise ValueError(
            f"The runs were judged differently: {first} by {' and '.join(theirs)}, {name} by "
            f"{' and '.join(own)}. Evaluate both with one judge and one version of it."
        )


def check_prompts(
    first: str, wanted: Sequence[Outcome], name: str, outcomes: Sequence[Outcome]
) -> None:
    """Raises ValueError, with the first few prompts, if two runs were asked different ones."""
    theirs, own = ({o.prompt.id: o.prompt.text for o in run} for run in (wanted, outcomes))
    missing = [theirs[key] for key in theirs if key not in own]
    added = [own[key] for key in own if key not in theirs]
    if missing or added:
        raise ValueError(
            f"The runs were measured on different prompts. {len(missing)} prompts of {first} are "
            f"missing in {name}{examples(missing)}; {len(added)} of {name} are missing in {first}"
            f"{examples(added)}. Measure both on the same sets, with the same limits."
        )
    numbers = [sorted({o.completion.sample for o in run}) for run in (wanted, outcomes)]
    if numbers[0] != numbers[1]:
        raise ValueError(
            f"The runs have other numbers of responses to a prompt: {first} {len(numbers[0])}, "
            f"{name} {len(numbers[1])}. Measure both with the same number."
        )


def examples(texts: Sequence[str]) -> str:
    """` ('How ...', ...)`, or nothing."""
    shown = ", ".join(repr(text[:60]) for text in texts[:SHOWN_PROMPTS])
    return f" ({shown}{', ...' if len(texts) > SHOWN_PROMPTS else ''})" if texts else ""


def against_first(runs: Mapping[str, Sequence[Outcome]]) -> list[SideBySide]:
    """Every other run against the first. If there are more than two runs, p values are corrected.

    Raises ValueError if the runs were not measured on the same prompts, or if no response was
    scored in both.
    """
    (first, wanted), *others = runs.items()
    found = [side_by_side(first, name, matched(wanted, run)) for name, run in others]
    for one in found:
        if not one.kinds:
            raise ValueError(
                f"No response was scored in both {one.before} and {one.after}, so nothing can be "
                "compared. Their outcomes say why (`unscored`)."
            )
    return with_holm(found) if len(found) > 1 else found


def side_by_side(before: str, after: str, pairs: Sequence[OutcomePair]) -> SideBySide:
    """Two runs, from their outcomes side by side."""
    kinds: dict[Kind, KindSideBySide] = {}
    for kind in KIND_ORDER:
        change = kind_change([pair for pair in pairs if pair[0].prompt.kind == kind])
        if n := change.paired.n:
            both, lost, gained, _ = (sum(row[cell] for row in change.cells) for cell in range(4))
            shares = ((both + lost) / n, (both + gained) / n)
            kinds[kind] = KindSideBySide(*shares, change.difference, change.paired)
    unknown = Estimate(None, None, None)
    sides = [kinds[k].difference if k in kinds else unknown for k in ("harmful", "benign")]
    return SideBySide(before, after, kinds, square_and_add(sides), changes(pairs))


def changes(pairs: Sequence[OutcomePair]) -> list[Move]:
    """The prompts whose response has another state in the second run, the largest move first."""
    found: dict[tuple[Kind, State, State], list[OutcomePair]] = {}
    for old, new in pairs:
        if state(old) != state(new):
            found.setdefault((old.prompt.kind, state(old), state(new)), []).append((old, new))
    moves = [Move(*key, outcomes) for key, outcomes in found.items()]
    return sorted(moves, key=lambda move: (KIND_ORDER.index(move.kind), -len(move.outcomes)))


def with_holm(found: Sequence[SideBySide]) -> list[SideBySide]:
    """The comparisons with p values corrected for all of their tests together."""
    places = [(at, kind) for at, one in enumerate(found) for kind in one.kinds]
    values = [found[at].kinds[kind].paired.p for at, kind in places]
    corrected = dict(zip(places, holm([1.0 if p is None else p for p in values]), strict=True))
    return [
        one._replace(
            kinds={k: side._replace(p_holm=corrected[at, k]) for k, side in one.kinds.items()}
        )
        for at, one in enumerate(found)
    ]


def holm(values: Sequence[float]) -> list[float]:
    """p values corrected by Holm's step-down method (Scandinavian Journal of Statistics 6, 1979).

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    order = sorted(range(len(values)), key=lambda at: values[at])
    found, highest = [0.0] * len(values), 0.0
    for rank, at in enumerate(order):
        highest = max(highest, min(1.0, (len(values) - rank) * values[at]))
        found[at] = highest
    return found
