"""A whole set of pairs -> findings: what the set teaches besides the prompts. Pure.

Within one of our rules the sides differ by construction. So these checks need two rules, or
imported pairs. Their findings have ids of their own: `opener/...`, `shortcut/...`, `length/all`,
`length/prompts`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from overrefusal_po.pairs.findings import Finding, Severity, Statistics
from overrefusal_po.pairs.prompt_free import FEWEST
from overrefusal_po.pairs.shortcuts import prompt_lengths, rejected_only_openers
from overrefusal_po.records import PreferencePair, Prompt

SHORTCUT = 0.65
"""Mean accuracy without the prompt from which wording counts as a shortcut. Measured on
SmolLM2-135M: 0.93 (openings) and 0.98 (words) on pairs that DPO won by wording, 0.51 and 0.55 on
pairs that taught it prompts."""

ERROR_FROM = 8
"""Rejected refusals with an opener that only they have (ours) from which it is an error: in a
handful it may be chance."""

LONGER = 0.33
"""Cliff's delta from which a difference counts as medium (Romano et al. 2006). For prompts: with
+.45 over all pairs, and +.75 over those of other hands, a 1.5B model refused short harmless prompts
(benchmarks/RESULTS.md); the shipped prompts have -.01."""


def set_findings(
    pairs: Sequence[PreferencePair], refused: Sequence[bool], known: Statistics
) -> Iterator[Finding]:
    """What the set teaches besides the prompts. `refused[i]`: whether the rejected side of pair i
    is a refusal."""
    yield from opener_findings(pairs, refused)
    curated = any(pair.rule is not None for pair in pairs)
    if words := uneven_prompts([pair.prompt for pair in pairs], curated=curated):
        yield Finding("length/prompts", "length", "warning", "prompt", words)
    if min(known.num_pairs.values()) >= FEWEST:
        yield from wording_findings(known)
        if len(known.num_pairs) > 1 or pairs[0].rule is None:
            yield from length_findings(known)


def opener_findings(pairs: Sequence[PreferencePair], refused: Sequence[bool]) -> Iterator[Finding]:
    """Openers of refusals that are only ever rejected."""
    for opener in rejected_only_openers(pairs, refused):
        message = (
            f"{opener.rejected} of {opener.of} rejected refusals of {opener.rule} begin with "
            f"{opener.words!r}, and no chosen side of another rule does: a model learns to avoid "
            "the opener, not to answer. Take the chosen refusals from the same model "
            "(chosen.refusals: student)"
        )
        severity: Severity = "error" if opener.rejected >= ERROR_FROM else "warning"
        yield Finding(f"opener/{opener.words}", "opener", severity, "rejected", message)


def wording_findings(known: Statistics) -> Iterator[Finding]:
    """Wording by which pairs are won without the prompt."""
    if len(known.num_pairs) == 1 and "general" not in known.num_pairs:
        return
    for name, told in known.prompt_free.items():
        if told.accuracy < SHORTCUT:
            continue
        shares = ", ".join(f"{rule} {share:.0%}" for rule, share in told.by_rule.items())
        message = (
            f"{told.accuracy:.0%} of {told.num_pairs} pairs are won without the prompt (mean of "
            f"{shares}; 50 % is none), by {name} such as {', '.join(map(repr, told.words))}. Let "
            "one model write the answers of all rules, and one the refusals"
        )
        yield Finding(f"shortcut/{name}", "shortcut", "warning", "both", message)


def length_findings(known: Statistics) -> Iterator[Finding]:
    """Chosen sides that are longer or shorter than rejected ones over all rules."""
    delta = known.lengths["all"].cliffs_delta
    if abs(delta) >= LONGER:
        message = (
            f"chosen sides are {'longer' if delta > 0 else 'shorter'} over all rules (Cliff's "
            f"delta {delta:+.2f})"
        )
        yield Finding("length/all", "length", "warning", "both", message)


def uneven_prompts(prompts: Sequence[Prompt], *, curated: bool = False) -> str | None:
    """How far length alone tells harmless prompts from harmful ones, and what helps; None if it
    does not, or if there are too few. `curated`: a curation chooses the rows, and so can match
    them."""
    found = prompt_lengths(prompts)
    if found is None or abs(found.cliffs_delta) < LONGER:
        return None
    longer, shorter = "harmless", "harmful"
    if found.cliffs_delta < 0:
        longer, shorter = shorter, longer
    matched = ", or have the curation match their lengths: data.length_ratio_max: 1.5"
    return (
        f"{longer} prompts are longer than {shorter} ones (median of {found.harmless:g} words for "
        f"harmless ones, {found.harmful:g} for harmful ones; Cliff's delta "
        f"{found.cliffs_delta:+.2f}): a model learns the length. Add {longer} prompts that are as "
        f"short as the {shorter} ones, or {shorter} ones that are as long"
        f"{matched if curated else ''}"
    )
