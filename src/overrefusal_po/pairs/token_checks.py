"""A pair under a chat template -> findings: control tokens, ends of turn, rows that are too long.

sides = rendered_sides(pair, template)
found = token_findings(pair, sides, template, limit=512)
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import takewhile
from typing import TYPE_CHECKING, NamedTuple

from overrefusal_po.model.chat import Turn
from overrefusal_po.pairs.findings import RESPONSE_SIDES, Finding, ResponseSide, Severity, SideName
from overrefusal_po.pairs.prompt_free import OPENING, Sides
from overrefusal_po.records import PreferencePair, Prompt

if TYPE_CHECKING:
    from overrefusal_po.model.chat import ChatTemplate

CONTROL = re.compile(
    r"<[|\uff5c][^|\uff5c<>\n]{1,40}[|\uff5c]>|</?s>|\[/?INST\]|<</?SYS>>"
    r"|<(?:start|end)_of_turn>|<(?:bos|eos)>"
)
"""Control tokens of the usual chat templates, used without a tokenizer."""

ENDS = re.compile(
    r"(?:<\|(?:im_end|eot_id|end|endoftext|end_of_text|return)\|>|</s>|<end_of_turn>|<eos>)\s*\Z"
)
BEGINS = re.compile(r"\s*(?:<\|begin_of_text\|>|<s>|<bos>)")


class RenderedSides(NamedTuple):
    """Both sides as token rows, None for a side that the template cannot separate from its prompt;
    `faults` says why."""

    chosen: Turn | None
    rejected: Turn | None
    faults: dict[ResponseSide, str]


def control_tokens(pair: PreferencePair, template: ChatTemplate | None) -> Iterator[Finding]:
    """Control tokens written out in the texts. The template breaks them up, so a prompt stays safe,
    but a side is spoiled."""
    texts: list[tuple[SideName, str]] = [("chosen", pair.chosen), ("rejected", pair.rejected)]
    texts += [("prompt", m.content) for m in pair.prompt.messages]
    for side, text in texts:
        usual = CONTROL.search(text)
        own = template is not None and template.neutral(text) != text
        if not usual and not own:
            continue
        sure = side != "prompt" and (own or template is None)
        severity: Severity = "error" if sure else "warning"
        which = f" ({usual[0]})" if usual else ""
        message = f"holds a control token as text{which}"
        yield Finding(pair.id, written_check(text, template), severity, side, message)


def written_check(text: str, template: ChatTemplate | None) -> str:
    """Which check a written control token fails: a second end of turn, a second BOS, or any other
    token."""
    tokenizer = template.tokenizer if template else None
    end, begin = (getattr(tokenizer, name, None) for name in ("eos_token", "bos_token"))
    if ENDS.search(text) or (end and text.rstrip().endswith(end)):
        return "double_end_of_turn"
    if BEGINS.match(text) or (begin and text.lstrip().startswith(begin)):
        return "double_bos"
    return "control_token"


def rendered_sides(pair: PreferencePair, template: ChatTemplate) -> RenderedSides:
    """Both sides of a pair under the template."""
    turns: dict[ResponseSide, Turn | None] = {}
    faults: dict[ResponseSide, str] = {}
    for side in RESPONSE_SIDES:
        try:
            turns[side] = rendered_side(pair, side, template)
        except ValueError as error:
            turns[side], faults[side] = None, str(error)
    return RenderedSides(turns["chosen"], turns["rejected"], faults)


def rendered_side(pair: PreferencePair, side: ResponseSide, template: ChatTemplate) -> Turn:
    """One side as a turn; the tokens of `assistant_prefix` belong to the prompt, as in training.

    ValueError if the template changes the prefix.
    """
    begun = pair.prompt.assistant_prefix
    turn = template.turn(pair.prompt.messages, begun + getattr(pair, side))
    own = begun_length(pair.prompt, turn, template) - len(turn.prompt_ids) if begun else 0
    asked = [*turn.prompt_ids, *turn.response_ids[:own]]
    kept = turn.unended if side in pair.unfinished else turn
    return Turn(asked, kept.response_ids[own:], kept.offsets[own:], turn.text)


def begun_length(prompt: Prompt, turn: Turn, template: ChatTemplate) -> int:
    """The tokens of a prompt and its `assistant_prefix` with which a turn begins.

    A token that holds both the end of the prefix and the start of the side belongs to the side.
    ValueError if the template changes the prefix.
    """
    begun = prompt.assistant_prefix
    asked = template.prompt_ids(prompt.messages, begun)
    ids = [*turn.prompt_ids, *turn.response_ids]
    own = len(list(takewhile(lambda both: both[0] == both[1], zip(asked, ids, strict=False))))
    if not turn.text.startswith(template.neutral(begun)) or own < len(turn.prompt_ids):
        raise ValueError(
            f"assistant_prefix ({begun[-40:]!r}) does not stand at the start of the response as "
            "the chat template renders it. Begin it with a word, without a blank, a control token "
            "or a thinking block."
        )
    return own


def token_findings(
    pair: PreferencePair, sides: RenderedSides, template: ChatTemplate, limit: int | None
) -> Iterator[Finding]:
    """What only tokens show: a prompt that is no prefix, a second BOS or end of turn, a row that is
    longer than `limit` tokens."""
    for side, fault in sides.faults.items():
        yield Finding(pair.id, "prefix", "error", side, fault)
    for side, turn in zip(RESPONSE_SIDES, sides[:2], strict=True):
        if turn is None:
            continue
        for check, message in token_faults(turn, template, single=len(pair.prompt.messages) == 1):
            yield Finding(pair.id, check, "error", side, message)
        length = len(turn.prompt_ids) + len(turn.response_ids)
        if limit is not None and length > limit:
            message = f"prompt and response are {length} tokens, more than max_length {limit}"
            yield Finding(pair.id, "truncation", "error", side, message)


def token_faults(turn: Turn, template: ChatTemplate, *, single: bool) -> Iterator[tuple[str, str]]:
    """(check, message) for a BOS or an end of turn too many. Some templates write a BOS before
    every user turn."""
    begin, end = template.tokenizer.bos_token_id, template.end_of_turn_id
    ids = [*turn.prompt_ids, *turn.response_ids]
    twice = {a for a, b in zip(ids, ids[1:], strict=False) if a == b}
    if begin is not None and begin != end and (begin in twice or (single and ids.count(begin) > 1)):
        yield "double_bos", "the rendered row holds the BOS token twice"
    if end is not None and (end in twice or turn.response_ids.count(end) > 1):
        yield "double_end_of_turn", "the rendered row holds the end-of-turn token twice"


def first_tokens(sides: Sequence[RenderedSides], template: ChatTemplate) -> list[Sides] | None:
    """The first tokens of (chosen, rejected) of each pair; None if a side cannot be rendered."""

    def named(ids: list[int]) -> list[str]:
        return list(template.tokenizer.convert_ids_to_tokens(ids[:OPENING]))

    found = []
    for chosen, rejected, _ in sides:
        if chosen is None or rejected is None:
            return None
        found.append((named(chosen.response_ids), named(rejected.response_ids)))
    return found
