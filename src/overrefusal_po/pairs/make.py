"""Completions and verdicts -> preference pairs, each by a rule and with its reason. Pure: no model,
no file.

    pair, why_not = overrefusal_pair(prompt, chosen, rejected, verdict)

Two rules (after POROver, arXiv 2410.12999; their exact form is ours):
- overrefusal: a benign prompt that the student refuses -> chosen = an answer, rejected = the
  student's refusal;
- containment: a harmful prompt -> chosen = a safe refusal, rejected = a completion more unsafe than
  it by at least tau (a guard's unsafe probability). Without a guard model "not refused" stands for
  "unsafe". These pairs keep the model safe.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from overrefusal_po.model.frame import thinking_end
from overrefusal_po.records import Completion, PreferencePair, Prompt, Rule, Verdict, content_id

TAU = 0.1
"""The least margin of containment pairs if none is given. Ours: the middle of the grid 0, .01, .03,
.1, .3, .5."""


class Guarded(NamedTuple):
    """A guard's verdicts on both sides of a containment pair."""

    chosen: Verdict
    rejected: Verdict


class Made(NamedTuple):
    """A pair, or None and the reason why none was made."""

    pair: PreferencePair | None
    reason: str


def make_pair(
    prompt: Prompt,
    chosen: str,
    rejected: str,
    rule: Rule,
    reason: str,
    verdicts: Sequence[Verdict] = (),
) -> Made:
    """A pair whose id comes from its content; none if a side is empty or both are equal."""
    chosen, rejected = chosen.strip(), rejected.strip()
    if not chosen or not rejected:
        return Made(None, "a side is empty")
    if chosen == rejected:
        return Made(None, "both sides are equal")
    pair = PreferencePair(
        id=content_id(prompt.id, chosen, rejected, rule),
        prompt=prompt,
        chosen=chosen,
        rejected=rejected,
        rule=rule,
        reason=reason,
        verdicts=tuple(verdicts),
    )
    return Made(pair, reason)


CLOSERS = "\"'”’“»)\\]」』）】〉》"
CUT_END = re.compile(
    rf"(?P<stop>[.!?…])[{CLOSERS}]*|[。｡．！？؟۔।॥։።፧။។](?![{CLOSERS}]++と)[{CLOSERS}]*",
)
"""`stop` ends a sentence before some characters alone (`ends_here`), the signs of other scripts
always do; in Japanese what is quoted before a "と" goes on."""

ITEM_NUMBER = re.compile(r"(^|\n)\W*\d+$")
""""1." opens an item of a list, and ends no sentence."""


def answer_of(completion: Completion) -> str:
    """What comes after the thinking block; "" if that is never closed."""
    return completion.text[thinking_end(completion.text) :].strip()


def whole_sentences(completion: Completion) -> str:
    """The text. If the length limit cut it, up to the end of its last whole sentence ("" if none
    ends).

    A cut text as a label teaches a model to stop in the middle of a sentence.
    """
    text = answer_of(completion)
    if completion.finish_reason == "stop":
        return text
    return text[: last_end(text)].rstrip()


def ends_whole(text: str) -> bool:
    """Whether a text ends with a whole sentence."""
    return last_end(text) == len(text.rstrip())


def last_end(text: str) -> int:
    """Where the last whole sentence ends; 0 if none does."""
    ends = [
        match.end()
        for match in CUT_END.finditer(text)
        if ends_here(text, match) and not ITEM_NUMBER.search(text[: match.start()])
    ]
    return max(ends, default=0)


def ends_here(text: str, stop: re.Match[str]) -> bool:
    """Whether a full stop ends a sentence, and is no part of "1.5" or "e.g.".

    A capital, or a letter of a script without capitals, may follow at once: a refusal taught by RTO
    is glued to the text before it.
    """
    after = text[stop.end() : stop.end() + 1]
    opens = after.isalpha() and after == after.upper()
    return stop["stop"] is None or not after or after.isspace() or opens


def behind_lead(response: str, opener: str, lead: str) -> str:
    """A safe response behind `lead`, or unchanged if it begins with `opener`. Of an empty one the
    lead is left."""
    if response.startswith(opener):
        return response
    return f"{lead.rstrip()} {response.lstrip()}" if response.strip() else lead.rstrip()


def side_text(completion: Completion, *, openings: bool = False) -> str:
    """The text for the side of a pair: whole sentences. If the pairs are for a training on
    openings, all of it: that training reads the first tokens alone."""
    return answer_of(completion) if openings else whole_sentences(completion)


def teacher_answer(
    answer: Completion, verdict: Verdict, *, openings: bool = False
) -> tuple[str, str]:
    """(the text that may be chosen, "") or ("", why not): a chosen text answers, and ends with a
    whole sentence. `openings`: as for `side_text`."""
    if verdict.unscored is not None:
        return "", f"unscored: {verdict.unscored}"
    if verdict.refused:
        return "", "the teacher refuses"
    if verdict.degenerate:
        return "", "the teacher's answer is degenerate"
    text = side_text(answer, openings=openings)
    return (text, "") if text else ("", "the teacher's answer is cut in its first sentence")


def overrefusal_pair(
    prompt: Prompt,
    chosen: str,
    rejected: Completion,
    verdict: Verdict,
    of_chosen: Sequence[Verdict] = (),
    *,
    openings: bool = False,
) -> Made:
    """Benign prompt, an answer over the student's own refusal of it. `of_chosen`: why this answer
    was chosen. `openings`: as for `side_text`."""
    if prompt.kind == "harmful":
        return Made(None, "the prompt is harmful")
    if verdict.unscored is not None:
        return Made(None, f"unscored: {verdict.unscored}")
    if not verdict.refused:
        return Made(None, "the student answers it")
    reason = f"{rejected.model} refuses this harmless prompt ({verdict.refusal})"
    verdicts = [verdict, *of_chosen]
    text = side_text(rejected, openings=openings) or answer_of(rejected)
    return make_pair(prompt, chosen, text, "overrefusal", reason, verdicts)


def answered_pair(
    prompt: Prompt,
    answer: Completion,
    refusal: str,
    verdict: Verdict,
    *,
    openings: bool = False,
) -> Made:
    """Benign prompt, the student's own answer over a refusal: it holds what is answered today.
    `openings`: as for `side_text`."""
    text, why_not = teacher_answer(answer, verdict, openings=openings)
    if prompt.kind == "harmful" or why_not:
        return Made(None, why_not.replace("teacher", "student") or "the prompt is harmful")
    reason = f"{answer.model} answers this harmless prompt, and should go on to"
    return make_pair(prompt, text, refusal, "overrefusal", reason, [verdict])


def containment_pair(
    prompt: Prompt,
    chosen: str,
    rejected: Completion,
    verdict: Verdict,
    guarded: Guarded | None = None,
    *,
    tau: float = TAU,
    openings: bool = False,
) -> Made:
    """Harmful prompt, a refusal over a completion that is more unsafe by `tau`; without a guard,
    over one that does not refuse. `openings`: as for `side_text`."""
    if prompt.kind != "harmful":
        return Made(None, "the prompt is not harmful")
    if verdict.unscored is not None:
        return Made(None, f"unscored: {verdict.unscored}")
    why_not = not_unsafe(guarded, tau) if guarded else ""
    if not guarded and verdict.refused:
        why_not = "the completion refuses"
    if why_not or verdict.degenerate:
        return Made(None, why_not or "the completion is degenerate")
    reason = f"{rejected.model} complies with this harmful prompt"
    if guarded:
        more = f"{margin(guarded):.3g} (at least {tau:g})"
        reason = f"{rejected.model} is more unsafe than the refusal by {more}"
    text = side_text(rejected, openings=openings) or answer_of(rejected)
    return make_pair(prompt, chosen, text, "containment", reason, [verdict, *(guarded or ())])


def margin(guarded: Guarded) -> float:
    """How much more unsafe the rejected side is, as a difference of probabilities."""
    chosen, rejected = (verdict.unsafe_probability for verdict in guarded)
    assert chosen is not None and rejected is not None
    return round(rejected - chosen, 9)  # so that 0.6 - 0.5 is 0.1


def not_unsafe(guarded: Guarded, tau: float) -> str:
    """Why a completion may not be the rejected side beside a refusal; "" if it may."""
    if any(verdict.unsafe_probability is None for verdict in guarded):
        return "the guard says nothing"
    if unsafe(guarded.chosen):
        return "the refusal is unsafe"
    return "" if margin(guarded) >= tau else "less than tau more unsafe than the refusal"


def unsafe(verdict: Verdict) -> bool:
    """Whether a guard finds a text unsafe."""
    return verdict.unsafe is True


def written_pairs(prompts: Iterable[Prompt]) -> list[PreferencePair]:
    """Overrefusal pairs from prompts that carry both sides: the reference over the refusal written
    for the prompt."""
    pairs = []
    for prompt in prompts:
        if prompt.kind == "benign" and prompt.reference and prompt.overcautious:
            reason = "the rejected side is a refusal written for this harmless prompt"
            made = make_pair(prompt, prompt.reference, prompt.overcautious, "overrefusal", reason)
            if made.pair is not None:
                pairs.append(made.pair)
    return pairs
