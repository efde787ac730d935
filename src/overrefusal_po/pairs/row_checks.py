"""One pair and the judge's verdicts on its sides -> findings: labels, empty and equal sides. Pure.

    verdicts = side_verdicts(pairs, judge)
    found = row_findings(pairs[0], *verdicts[0])

A label is an error if judge and wording agree that it is wrong. If the judge alone says so, it is a
warning: somebody has to look.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher

from overrefusal_po.identity import spoken_words
from overrefusal_po.judges import Judge, refusal_verdict, scored
from overrefusal_po.pairs.findings import RESPONSE_SIDES, Finding, Severity
from overrefusal_po.records import Completion, PreferencePair, Prompt, Sampling, Verdict, content_id
from overrefusal_po.sources._turns import is_seen

NEARLY_EQUAL = 0.9
"""Share of words in common, in order, from which two sides are nearly equal."""

REFUSAL_WORDS = re.compile(
    r"sorry|apolog|\bcan'?t\b|cannot|can not|\bwon'?t\b|unable|not "
    r"able|refuse|decline|comfortable|as an ai|against my|\bi (?:must|will|would|do|could) "
    r"(?:not|have to pass)|isn't something i|d\u00e9sol|lo siento|tut mir leid|leider|n\u00e3o "
    r"posso|mi "
    r"dispiace|\u0438\u0437\u0432\u0438\u043d|\u62b1\u6b49|\u7533\u3057\u8a33|\uc8c4\uc1a1|\u0622\u0633\u0641"
)
"""What nearly every refusal says somewhere in its first 200 characters."""


SideVerdicts = tuple[Verdict, Verdict]
"""The verdicts on the chosen and the rejected side of a pair."""


def side_verdicts(pairs: Sequence[PreferencePair], judge: Judge) -> list[SideVerdicts]:
    """The judge's verdicts on (chosen, rejected) of each pair."""
    return by_pair(scored(judge, *side_completions(pairs)))


def by_pair(verdicts: Sequence[Verdict]) -> list[SideVerdicts]:
    """Verdicts on the completions of `side_completions`, the two of a pair together.

    A verdict that says nothing of refusals is unscored: else a pair would pass unread.
    """
    known = [refusal_verdict(verdict) for verdict in verdicts]
    return list(zip(known[::2], known[1::2], strict=True))


def side_completions(pairs: Sequence[PreferencePair]) -> tuple[list[Prompt], list[Completion]]:
    """(prompts, completions): the two sides of each pair as a judge reads them."""
    greedy = Sampling()
    said = [
        Completion(
            id=content_id(pair.prompt.id, text),
            prompt_id=pair.prompt.id,
            text=text,
            model="file",
            engine="file",
            sampling=greedy,
        )
        for pair in pairs
        for text in (pair.chosen, pair.rejected)
    ]
    return [pair.prompt for pair in pairs for _ in RESPONSE_SIDES], said


def row_findings(pair: PreferencePair, chosen: Verdict, rejected: Verdict) -> Iterator[Finding]:
    """What the texts of one pair and the verdicts on them show."""
    empty = [side for side in RESPONSE_SIDES if not has_word(getattr(pair, side))]
    for side in empty:
        yield Finding(pair.id, "empty", "error", side, "has no word")
    if not empty:
        yield from degenerate_sides(pair, chosen, rejected)
        yield from equal_sides(pair)
    if pair.rule and (pair.rule == "containment") != (pair.prompt.kind == "harmful"):
        message = f"the rule is {pair.rule}, but the prompt's kind is {pair.prompt.kind}"
        yield Finding(pair.id, "rule", "error", "prompt", message)
    for side, verdict in zip(RESPONSE_SIDES, (chosen, rejected), strict=True):
        if verdict.unscored is not None:
            message = f"the judge gives no verdict: {verdict.unscored}"
            yield Finding(pair.id, "unscored", "warning", side, message)
    of_kind = harmful_labels if pair.prompt.kind == "harmful" else harmless_labels
    yield from (f for f in of_kind(pair, chosen, rejected) if f.side not in steps_of(pair))


def has_word(text: str) -> bool:
    """Whether a text holds a letter or a digit that is seen."""
    return is_seen(text) and re.search(r"\w", text) is not None


def steps_of(pair: PreferencePair) -> tuple[str, ...]:
    """The sides that are a step of a response, and neither answer nor refuse. A rule was applied to
    an opening, which does."""
    return () if pair.rule else pair.unfinished


def degenerate_sides(pair: PreferencePair, chosen: Verdict, rejected: Verdict) -> Iterator[Finding]:
    """Sides that are no response: an error if chosen, a warning if rejected or a step."""
    message = "loops, echoes the prompt or breaks off after an opening"
    if chosen.degenerate:
        sure = "chosen" not in steps_of(pair)
        yield Finding(pair.id, "degenerate", severity(sure), "chosen", message)
    if rejected.degenerate:
        yield Finding(pair.id, "degenerate", "warning", "rejected", message)


def equal_sides(pair: PreferencePair) -> Iterator[Finding]:
    """Sides that say the same, or nearly."""
    share = shared_words(pair.chosen, pair.rejected)
    if share == 1:
        yield Finding(pair.id, "equal", "error", "both", "the sides are equal")
    elif share:
        message = f"the sides have {share:.0%} of their words in common"
        yield Finding(pair.id, "near_equal", "warning", "both", message)


def sounds_like_refusal(text: str) -> bool:
    """Whether a text has a refusal's words near its start: the second witness beside a judge, which
    may err."""
    return REFUSAL_WORDS.search(text.strip()[:200].lower().replace("\u2019", "'")) is not None


def harmless_labels(pair: PreferencePair, chosen: Verdict, rejected: Verdict) -> Iterator[Finding]:
    """A harmless prompt: chosen answers; rejected refuses, unless the pair was imported and may be
    about anything else."""
    if chosen.refused:
        sure = chosen.refusal == "full" and sounds_like_refusal(pair.chosen)
        message = f"refuses a harmless prompt ({chosen.refusal})"
        yield Finding(pair.id, "chosen_refuses", severity(sure), "chosen", message)
    answers = rejected.refusal == "none" and not rejected.degenerate
    if answers and (pair.rule or pair.prompt.kind == "benign"):
        sure = pair.rule is not None and not sounds_like_refusal(pair.rejected)
        message = "answers a harmless prompt, and is rejected"
        yield Finding(pair.id, "rejected_answers", severity(sure), "rejected", message)


def harmful_labels(pair: PreferencePair, chosen: Verdict, rejected: Verdict) -> Iterator[Finding]:
    """A harmful prompt: chosen refuses; rejected does not, unless a guard has found it unsafe all
    the same."""
    if chosen.refusal == "none":
        sure = not sounds_like_refusal(pair.chosen)
        message = "does not refuse a harmful prompt"
        yield Finding(pair.id, "chosen_complies", severity(sure), "chosen", message)
    elif chosen.refusal == "partial":
        message = "refuses a harmful prompt, but not in full"
        yield Finding(pair.id, "chosen_complies", "warning", "chosen", message)
    if rejected.refused:
        guarded = any(v.unsafe_probability is not None for v in pair.verdicts)
        full = pair.rule == "containment" and rejected.refusal == "full"
        sure = full and not guarded and sounds_like_refusal(pair.rejected)
        message = f"refuses a harmful prompt ({rejected.refusal}), and is rejected"
        yield Finding(pair.id, "rejected_refuses", severity(sure), "rejected", message)


def severity(sure: bool) -> Severity:
    """An error if judge and wording agree, else a warning."""
    return "error" if sure else "warning"


def shared_words(one: str, other: str) -> float:
    """Share of words that both texts have in the same order, from 0.9 on; 1 for equal words, 0 for
    less than 0.9."""
    a, b = spoken_words(one.lower()), spoken_words(other.lower())
    if a == b:
        return 1.0
    # two upper bounds of the share, cheap and less cheap, rule out nearly all sides
    size = len(a) + len(b)
    if 2 * min(len(a), len(b)) / size < NEARLY_EQUAL:
        return 0.0
    if 2 * (Counter(a) & Counter(b)).total() / size < NEARLY_EQUAL:
        return 0.0
    share = SequenceMatcher(None, a, b, autojunk=False).ratio()
    return share if share >= NEARLY_EQUAL else 0.0
