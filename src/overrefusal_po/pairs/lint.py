"""Pairs -> what is wrong with them: findings by row, and what the whole set teaches besides the
prompts. Pure.

    found = lint(read_pairs("pairs.jsonl"), judge)
    found.errors
    # [Finding(id, "chosen_refuses", "error", "chosen", "refuses a harmless prompt (full)")]

Errors stop a training, warnings are counted; `waive={id: reason}` puts a row's findings aside. With
a chat template the tokens are checked too. Findings about the whole set have an id of their own
("shortcut/words", "opener/i'm sorry but"), which can be waived too. The sides are never quoted:
they may be harmful.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from overrefusal_po.judges import Judge
from overrefusal_po.pairs.findings import (
    RESPONSE_SIDES,
    Finding,
    Lint,
    Statistics,
    placed,
    without_waived,
)
from overrefusal_po.pairs.prompt_free import Sides, prompt_free
from overrefusal_po.pairs.row_checks import (
    SideVerdicts,
    row_findings,
    side_verdicts,
)
from overrefusal_po.pairs.row_conflicts import row_conflicts
from overrefusal_po.pairs.set_checks import set_findings
from overrefusal_po.pairs.shortcuts import lengths, rule_or_kind
from overrefusal_po.pairs.token_checks import (
    control_tokens,
    first_tokens,
    rendered_sides,
    token_findings,
)
from overrefusal_po.records import PreferencePair, Verdict

if TYPE_CHECKING:
    from overrefusal_po.model.chat import ChatTemplate


def lint(
    pairs: Sequence[PreferencePair],
    judge: Judge,
    *,
    template: ChatTemplate | None = None,
    max_length: int | None = None,
    waive: Mapping[str, str] | None = None,
    verdicts: Sequence[SideVerdicts] | None = None,
    contaminated: Sequence[Finding] = (),
) -> Lint:
    """All findings. `judge` scores completions; `max_length` in tokens needs the template.

    `verdicts` are those of `row_checks.side_verdicts`, if they are known already. `contaminated`
    are the firewall's findings, which are waived in the same way. ValueError without pairs.
    """
    if not pairs:
        raise ValueError("There is no pair to check. Give at least one.")
    if verdicts is None:
        verdicts = side_verdicts(pairs, judge)
    found = [
        finding
        for pair, both in zip(pairs, verdicts, strict=True)
        for finding in placed(row_findings(pair, *both), pair.origin)
    ]
    found += row_conflicts(pairs)
    for pair in pairs:
        found += placed(control_tokens(pair, template), pair.origin)
    openings = None
    if template:
        sides = [rendered_sides(pair, template) for pair in pairs]
        for pair, both in zip(pairs, sides, strict=True):
            found += placed(token_findings(pair, both, template, max_length), pair.origin)
        openings = first_tokens(sides, template)
    known = statistics(pairs, verdicts, found, openings)
    found += set_findings(pairs, [rejected.refused for _, rejected in verdicts], known)
    return without_waived([*found, *contaminated], waive or {}, known)


def statistics(
    pairs: Sequence[PreferencePair],
    verdicts: Sequence[tuple[Verdict, Verdict]],
    found: Sequence[Finding],
    openings: Sequence[Sides] | None,
) -> Statistics:
    """What is reported of a set besides the findings of its rows."""
    too_long = Counter(finding.side for finding in found if finding.check == "truncation")
    return Statistics(
        num_pairs=dict(Counter(map(rule_or_kind, pairs))),
        lengths=lengths(pairs),
        prompt_free=prompt_free(pairs, openings),
        over_length={side: too_long[side] for side in RESPONSE_SIDES},
        unscored=sum(v.unscored is not None for both in verdicts for v in both),
    )
