"""Outcomes -> the tokens that open a model's refusals.

found = refusal_openers(template, outcomes)
found.ids                    # (19, 2121): sorted
found.as_dict()["tokens"]    # ["Sorry", "I"]: the commonest first
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable, Sequence
from typing import Literal, NamedTuple, TypedDict

from overrefusal_po.model.chat import SHORT_CONVERSATION, ChatTemplate
from overrefusal_po.model.frame import thinking_end
from overrefusal_po.records import Outcome
from overrefusal_po.sources import starter

HEAD = 200
"""Characters of a response that are read: its first token is among them."""

COMMON_REFUSALS = (
    "Sorry, but I can't help with that.",
    "I'm sorry, but I can't help with that.",
    "As an AI, I can't help with that.",
    "Unfortunately, I can't help with that.",
    "No, I won't help with that.",
)
"""How chat models open refusals."""

RARE = 0.02
"""A token that opens at most this share of the answers may be suppressed without much loss."""

LEAST_SHARE = 0.05
"""A token that opens a smaller share of the refusals is none of its openers: "Driving" opens one
refusal to a question about cars. To raise it would raise answers too."""

OpenerSource = Literal["own refusals", "written refusals"]
"""Where the openers come from; the written refusals are those of the starter set."""


class OpenersEntry(TypedDict):
    """The openers in metrics.json. `left_out` open refusals too, but answers at least as often."""

    source: OpenerSource
    tokens: list[str]
    left_out: list[str]
    refusals_opened: float | None
    answers_opened: float | None


class Openers(NamedTuple):
    """The tokens that open refusals, and how they were found.

    `ids` are the token ids, sorted; `tokens` are the same as text, those that open most refusals
    first. `refusals_opened` and `answers_opened` are
    the shares of refusals and answers that begin with one of them; None if there are none.
    """

    ids: tuple[int, ...]
    source: OpenerSource
    tokens: list[str]
    left_out: list[str]
    refusals_opened: float | None
    answers_opened: float | None

    def as_dict(self) -> OpenersEntry:
        """The entry of metrics.json."""
        return {
            "source": self.source,
            "tokens": self.tokens,
            "left_out": self.left_out,
            "refusals_opened": self.refusals_opened,
            "answers_opened": self.answers_opened,
        }


def thinks(outcomes: Sequence[Outcome]) -> bool:
    """Whether most responses hold a thinking block: then the first token decides nothing."""
    thoughts = sum(thinking_end(o.completion.text) > 0 for o in outcomes)
    return 2 * thoughts > len(outcomes)


class FirstTokens(NamedTuple):
    """How many refusals and how many answers each token opens, and how many there are of both."""

    refused: Counter[int]
    refusals: int
    answered: Counter[int]
    answers: int


def counted(template: ChatTemplate, outcomes: Sequence[Outcome]) -> FirstTokens:
    """The first tokens of the outcomes that open with a refusal, and of those that answer."""
    refusals = [o.completion.text for o in outcomes if opens_with_refusal(o)]
    answers = [o.completion.text for o in outcomes if is_answer(o)]
    refused, answered = (first_tokens(template, texts) for texts in (refusals, answers))
    return FirstTokens(refused, len(refusals), answered, len(answers))


def every_opener(template: ChatTemplate, outcomes: Sequence[Outcome]) -> Openers:
    """`refusal_openers`, and the first tokens of common refusals that open few of its answers.

    A model that may not begin with its own openers takes the next refusal that it knows.
    """
    now = counted(template, outcomes)
    return with_common(template, openers_of(template, now), now)


def raised_openers(
    template: ChatTemplate, outcomes: Sequence[Outcome], before: Sequence[Outcome]
) -> Openers:
    """The openers of a trained model, and those of the model `before` its training: it may refuse
    nothing any more. They are its own words alone, if it has or had some: it never begins with
    other common ones, and whoever raises "No" as much as "I" gets answers that begin with "No"."""
    now = counted(template, outcomes)
    found = with_earlier(template, openers_of(template, now), now, counted(template, before))
    own = found.source == "own refusals" and found.ids
    return found if own else with_common(template, found, now)


def with_common(template: ChatTemplate, found: Openers, now: FirstTokens) -> Openers:
    """Openers, and the first tokens of common refusals that open few answers."""
    common = [
        token
        for token in first_tokens(template, COMMON_REFUSALS)
        if token not in found.ids
        and str(template.tokenizer.decode([token])) not in found.left_out
        and now.answered[token] <= RARE * now.answers
    ]
    return with_more(template, found, common, now)


def with_earlier(
    template: ChatTemplate, found: Openers, now: FirstTokens, before: FirstTokens
) -> Openers:
    """The openers of a model with those of its refusals `before` its training. One of these stays
    if it opens a greater share of them than of the answers then, and of the answers now."""
    if not before.refusals:
        return found
    if found.source != "own refusals":
        found = found._replace(ids=(), source="own refusals", tokens=[], left_out=[])
    more = [
        token
        for token in openers_of(template, before).ids
        if token not in found.ids
        and str(template.tokenizer.decode([token])) not in found.left_out
        and before.refused[token] * now.answers > now.answered[token] * before.refusals
    ]
    return with_more(template, found, more, now)


def with_more(
    template: ChatTemplate, found: Openers, more: Sequence[int], now: FirstTokens
) -> Openers:
    """Openers with more token ids, and what they then open."""
    ids = [*found.ids, *more]
    return found._replace(
        ids=tuple(sorted(ids)),
        tokens=[*found.tokens, *(str(template.tokenizer.decode([token])) for token in more)],
        refusals_opened=share_opened(now.refused, ids, now.refusals),
        answers_opened=share_opened(now.answered, ids, now.answers),
    )


def refusal_openers(template: ChatTemplate, outcomes: Sequence[Outcome]) -> Openers:
    """The first tokens of the model's own refusals; of the written ones if it has none.

    A refusal counts if the judge sees it start at character 0, or if it is a full one and the judge
    does not say where. A token stays if it opens at least `LEAST_SHARE` of these refusals, and a
    greater share of them than of the answers: to see it is then a sign of a refusal. Others are
    left out, such as an "I" that opens most answers too. Responses to prompts of all kinds count,
    if they are scored.
    """
    return openers_of(template, counted(template, outcomes))


def openers_of(template: ChatTemplate, now: FirstTokens) -> Openers:
    """`refusal_openers` of what is counted already."""
    refused, refusals = now.refused, now.refusals
    if not refusals:
        written = written_refusals()
        refused, refusals = first_tokens(template, written), len(written)
    often = [token for token, n in refused.most_common() if n >= LEAST_SHARE * refusals]
    kept = [
        token
        for token in often
        if not now.answers or refused[token] / refusals > now.answered[token] / now.answers
    ]
    decode = template.tokenizer.decode
    return Openers(
        ids=tuple(sorted(kept)),
        source="own refusals" if now.refusals else "written refusals",
        tokens=[str(decode([token])) for token in kept],
        left_out=[str(decode([token])) for token in often if token not in kept],
        refusals_opened=share_opened(now.refused, kept, now.refusals),
        answers_opened=share_opened(now.answered, kept, now.answers),
    )


def opens_with_refusal(outcome: Outcome) -> bool:
    """Whether the response begins with its refusal."""
    verdict = outcome.verdict
    if verdict.unscored is not None or not verdict.refused:
        return False
    start = verdict.refusal_start
    return start == 0 or (start is None and verdict.refusal == "full")


def is_answer(outcome: Outcome) -> bool:
    """Whether the response is scored, does not refuse, and is not degenerate."""
    verdict = outcome.verdict
    return verdict.unscored is None and verdict.refusal == "none" and not verdict.degenerate


def written_refusals() -> list[str]:
    """The refusals that the starter set has: right ones of harmful prompts, wrong ones of benign
    prompts."""
    prompts = starter.prompts(starter.Settings(), None)
    texts = (p.reference if p.kind == "harmful" else p.overcautious for p in prompts)
    return [text for text in texts if text]


def share_opened(counts: Counter[int], tokens: Iterable[int], n: int) -> float | None:
    """The share of `n` texts that one of these tokens opens; None without a text."""
    return sum(counts[token] for token in tokens) / n if n else None


def opens_with(template: ChatTemplate, texts: Sequence[str], tokens: Container[int]) -> list[bool]:
    """Whether the first token of each text, as a response, is one of `tokens`."""
    return [any(token in tokens for token in first_tokens(template, [text])) for text in texts]


def first_tokens(template: ChatTemplate, texts: Sequence[str]) -> Counter[int]:
    """How many texts each token opens, at the start of a response.

    A text that is empty or begins with white space is left out: a rendered turn has none there.
    """
    heads = [text[:HEAD] for text in texts if text and not text[0].isspace()]
    turns = template.turns([(SHORT_CONVERSATION, head) for head in heads])
    firsts = (
        next((i for i, (a, b) in zip(turn.response_ids, turn.offsets, strict=True) if b > a), None)
        for turn in turns
    )
    return Counter(token for token in firsts if token is not None)
