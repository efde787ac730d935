"""Completions and verdicts -> preference pairs, each by a rule and with its reason. Pure: no model, no file.

    pair, why_not = overrefusal_pair(prompt, chosen, rejected, verdict)

Two rules (after POROver, arXiv 2410.12999; their exact form is ours):
- overrefusal: a benign prompt that the student refuses -> chosen = an answer, rejected = the student's refusal;
- containment: a harmful prompt -> chosen = a refusal, rejected = a completion that does not refuse. It holds the model
  where it is safe. Without a guard model "not refused" stands for "unsafe".
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from overrefusal_po.records import Completion, PreferencePair, Prompt, Rule, Verdict, content_id


class Made(NamedTuple):
    """A pair, or None and the reason why none was made."""

    pair: PreferencePair | None
    reason: str


def make_pair(
    prompt: Prompt, chosen: str, rejected: str, rule: Rule, reason: str, verdicts: Sequence[Verdict] = ()
) -> Made:
    """A pair whose id comes from its content; none where a side is empty or both are equal."""
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


SENTENCE_END = re.compile(
    r"[.!?。！？…][\"'”’)\]]*(?=\s|$|[A-Z])"
)  # a refusal taught by RTO is glued to what stands before


def whole_sentences(completion: Completion) -> str:
    """The text; where the length limit cut it, up to the end of its last whole sentence ("" where none ends).

    A cut text as a label teaches a model to stop in the middle of a sentence.
    """
    text = completion.text.strip()
    if completion.finish_reason == "stop":
        return text
    ends = [match.end() for match in SENTENCE_END.finditer(text)]
    return text[: ends[-1]] if ends else ""


def teacher_answer(answer: Completion, verdict: Verdict) -> tuple[str, str]:
    """(the text that may be chosen, "") or ("", why not): a chosen answer answers, and ends where a sentence ends."""
    if verdict.unscored is not None:
        return "", f"unscored: {verdict.unscored}"
    if verdict.refused:
        return "", "the teacher refuses"
    if verdict.degenerate:
        return "", "the teacher's answer is degenerate"
    text = whole_sentences(answer)
    return (text, "") if text else ("", "the teacher's answer is cut in its first sentence")


def overrefusal_pair(prompt: Prompt, chosen: str, rejected: Completion, verdict: Verdict) -> Made:
    """Benign prompt, an answer over the student's own refusal of it."""
    if prompt.kind == "harmful":
        return Made(None, "the prompt is harmful")
    if verdict.unscored is not None:
        return Made(None, f"unscored: {verdict.unscored}")
    if not verdict.refused:
        return Made(None, "the student answers it")
    reason = f"{rejected.model} refuses this harmless prompt ({verdict.refusal})"
    return make_pair(prompt, chosen, whole_sentences(rejected) or rejected.text, "overrefusal", reason, [verdict])


def containment_pair(prompt: Prompt, chosen: str, rejected: Completion, verdict: Verdict) -> Made:
    """Harmful prompt, a refusal over a completion that does not refuse it."""
    if prompt.kind != "harmful":
        return Made(None, "the prompt is not harmful")
    if verdict.unscored is not None:
        return Made(None, f"unscored: {verdict.unscored}")
    if verdict.refused:
        return Made(None, "the completion refuses")
    if verdict.degenerate:
        return Made(None, "the completion is degenerate")
    reason = f"{rejected.model} complies with this harmful prompt"
    return make_pair(prompt, chosen, whole_sentences(rejected) or rejected.text, "containment", reason, [verdict])


def written_pairs(prompts: Iterable[Prompt]) -> list[PreferencePair]:
    """Overrefusal pairs from prompts that carry both sides: the reference over the refusal written for the prompt."""
    pairs = []
    for prompt in prompts:
        if prompt.kind == "benign" and prompt.reference and prompt.overcautious:
            reason = "the rejected side is a refusal written for this harmless prompt"
            made = make_pair(prompt, prompt.reference, prompt.overcautious, "overrefusal", reason)
            if made.pair is not None:
                pairs.append(made.pair)
    return pairs
