"""Pairs -> what is wrong with them: findings by row, and what the whole set teaches besides the
prompts. Pure.

    found = lint(pair_files.read_pairs("pairs.jsonl"), judge)
    found.errors
    # [Finding(id, "chosen_refuses", "error", "chosen", "refuses a harmless prompt (full)")]

Errors stop a training, warnings are counted; `waive={id: reason}` puts a row's findings aside. With
a chat template the tokens are checked too. Findings about the whole set have an id of their own
("shortcut/words", "opener/i'm sorry but"), which can be waived alike. What the sides say is never
quoted: it may be harmful.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from difflib import SequenceMatcher
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from overrefusal_po.pairs.shortcuts import (
    FEWEST,
    OPENING,
    Length,
    PromptFree,
    lengths,
    lonely_openers,
    prompt_free,
    rule_of,
)
from overrefusal_po.records import Completion, PreferencePair, Sampling, Verdict, content_id

if TYPE_CHECKING:
    from overrefusal_po.model.chat import ChatTemplate, Turn

Severity = Literal["error", "warning"]
Side = Literal["chosen", "rejected", "prompt", "both"]

ALIKE = 0.9
"""Share of words in common, in order, from which two sides are nearly equal."""

TOLD = 0.65
"""Mean accuracy without the prompt from which wording counts as a shortcut. Measured on
SmolLM2-135M: 0.93 (openings) and 0.98 (words) on pairs that DPO won by wording, 0.51 and 0.55 on
pairs that taught it prompts."""

ERROR_FROM = 8
"""Rejected refusals with a lonely opener (ours) from which it is an error: in a handful it may be
chance."""

LONGER = 0.33
"""Cliff's delta from which a difference counts as medium (Romano et al. 2006)."""

CONTROL = re.compile(
    r"<[|\uff5c][^|\uff5c<>\n]{1,40}[|\uff5c]>|</?s>|\[/?INST\]|<</?SYS>>|<(?:start|end)_of_turn>|<(?:bos|eos)>"
)
"""Control tokens of the usual chat templates, for where no tokenizer is at hand."""


class Finding(NamedTuple):
    """One thing that is wrong with one row, or with the whole set."""

    id: str
    check: str
    severity: Severity
    side: Side
    message: str


class Statistics(NamedTuple):
    """What is only reported. `over_length`: sides longer than max_length; `unscored`: sides that
    the judge left out."""

    num_pairs: dict[str, int]
    lengths: dict[str, Length]
    prompt_free: dict[str, PromptFree]
    over_length: dict[str, int]
    unscored: int


class Lint(NamedTuple):
    """Findings that stand, those that are waived with the reason, and the statistics."""

    findings: list[Finding]
    waived: list[tuple[Finding, str]]
    statistics: Statistics

    @property
    def errors(self) -> list[Finding]:
        """What stops."""
        return [f for f in self.findings if f.severity == "error"]

    @property
    def warnings(self) -> list[Finding]:
        """What is counted."""
        return [f for f in self.findings if f.severity == "warning"]

    def counts(self) -> dict[str, int]:
        """{check: findings}, the most frequent first."""
        return dict(Counter(f.check for f in self.findings).most_common())


def lint(
    pairs: Sequence[PreferencePair],
    judge: Any,
    *,
    template: ChatTemplate | None = None,
    max_length: int | None = None,
    waive: Mapping[str, str] | None = None,
) -> Lint:
    """All findings. `judge` scores completions; `max_length` in tokens needs the template.
    ValueError without pairs."""
    if not pairs:
        raise ValueError("There is no pair to check. Give at least one.")
    verdicts = judged(pairs, judge)
    turns = [rendered(pair, template) for pair in pairs] if template else []
    found = [
        f
        for pair, (chosen, rejected) in zip(pairs, verdicts, strict=True)
        for f in row(pair, chosen, rejected)
    ]
    found += contradictions(pairs)
    for pair in pairs:
        found += control_tokens(pair, template)
    for pair, sides in zip(pairs, turns, strict=False):
        assert template is not None
        found += tokens(pair, sides, template, max_length)
    told = prompt_free(pairs, openings(pairs, turns, template))
    statistics = Statistics(
        dict(Counter(map(rule_of, pairs))),
        lengths(pairs),
        told,
        {
            side: sum(f.check == "truncation" and f.side == side for f in found)
            for side in ("chosen", "rejected")
        },
        sum(v.unscored is not None for both in verdicts for v in both),
    )
    found += whole_set(pairs, [rejected.refused for _, rejected in verdicts], statistics)
    return waived(found, waive or {}, statistics)


def waived(found: list[Finding], waive: Mapping[str, str], statistics: Statistics) -> Lint:
    """Findings with those of waived ids put aside; a waiver without a finding or without a reason
    is itself a warning."""
    stand = [f for f in found if not waive.get(f.id, "").strip()]
    aside = [(f, waive[f.id]) for f in found if waive.get(f.id, "").strip()]
    ids = {f.id for f in found}
    for name, reason in waive.items():
        if not reason.strip():
            stand.append(
                Finding(
                    name,
                    "waiver",
                    "warning",
                    "both",
                    "is waived without a reason, so it is not waived",
                )
            )
        elif name not in ids:
            stand.append(
                Finding(name, "waiver", "warning", "both", "is waived, but nothing is found there")
            )
    return Lint(stand, aside, statistics)


# --- one row --------------------------------------------------------------------------------------


def judged(pairs: Sequence[PreferencePair], judge: Any) -> list[tuple[Verdict, Verdict]]:
    """The judge's verdicts on (chosen, rejected) of each pair."""
    said = [
        Completion(
            id=content_id(pair.prompt.id, text),
            prompt_id=pair.prompt.id,
            text=text,
            model="file",
            engine="file",
            sampling=Sampling(),
        )
        for pair in pairs
        for text in (pair.chosen, pair.rejected)
    ]
    verdicts = judge.score([p.prompt for p in pairs for _ in range(2)], said)
    return list(zip(verdicts[::2], verdicts[1::2], strict=True))


def row(pair: PreferencePair, chosen: Verdict, rejected: Verdict) -> Iterator[Finding]:
    """What the texts of one pair and the verdicts on them say."""

    def finding(check: str, severity: Severity, side: Side, message: str) -> Finding:
        return Finding(pair.id, check, severity, side, message)

    empty = [
        side
        for side, text in (("chosen", pair.chosen), ("rejected", pair.rejected))
        if not re.search(r"\w", text)
    ]
    for side in empty:
        yield finding("empty", "error", side, "has no word")  # type: ignore[arg-type]
    if not empty:
        if chosen.degenerate:
            yield finding(
                "degenerate",
                "error",
                "chosen",
                "loops, echoes the prompt or breaks off after an opening",
            )
        if rejected.degenerate:
            yield finding(
                "degenerate",
                "warning",
                "rejected",
                "loops, echoes the prompt or breaks off after an opening",
            )
        if alike := likeness(pair.chosen, pair.rejected):
            equal = alike == 1
            message = (
                "the sides are equal"
                if equal
                else f"the sides have {alike:.0%} of their words in common"
            )
            yield finding(
                "equal" if equal else "near_equal", "error" if equal else "warning", "both", message
            )
    if pair.rule and (pair.rule == "containment") != (pair.prompt.kind == "harmful"):
        yield finding(
            "rule",
            "error",
            "prompt",
            f"the rule is {pair.rule}, but the prompt's kind is {pair.prompt.kind}",
        )
    for side, verdict in (("chosen", chosen), ("rejected", rejected)):
        if verdict.unscored is not None:
            yield finding(
                "unscored", "warning", side, f"the judge says nothing: {verdict.unscored}"
            )  # type: ignore[arg-type]
    yield from (harmful_row if pair.prompt.kind == "harmful" else harmless_row)(
        pair, chosen, rejected
    )


REFUSAL_WORDS = re.compile(
    r"sorry|apolog|\bcan'?t\b|cannot|can not|\bwon'?t\b|unable|not "
    r"able|refuse|decline|comfortable|as an ai|against my|\bi (?:must|will|would|do|could) "
    r"(?:not|have to pass)|isn't something i|d\u00e9sol|lo siento|tut mir leid|leider|n\u00e3o "
    r"posso|mi "
    r"dispiace|\u0438\u0437\u0432\u0438\u043d|\u62b1\u6b49|\u7533\u3057\u8a33|\uc8c4\uc1a1|\u0622\u0633\u0641"
)
"""What nearly every refusal says somewhere in its first 200 characters."""


def worded(text: str) -> bool:
    """Whether a text has a refusal's words near its start: the second witness beside a judge, which
    may err.

    A label is an error where both agree that it is wrong, and a warning, to be looked at, where the
    judge alone says so.
    """
    return REFUSAL_WORDS.search(text.strip()[:200].lower().replace("\u2019", "'")) is not None


def harmless_row(pair: PreferencePair, chosen: Verdict, rejected: Verdict) -> Iterator[Finding]:
    """A harmless prompt: chosen answers; rejected refuses, unless the pair was imported and may be
    about anything else."""
    if chosen.refused:
        sure = chosen.refusal == "full" and worded(pair.chosen)
        message = f"refuses a harmless prompt ({chosen.refusal})"
        yield Finding(pair.id, "chosen_refuses", "error" if sure else "warning", "chosen", message)
    if (
        rejected.refusal == "none"
        and not rejected.degenerate
        and (pair.rule or pair.prompt.kind == "benign")
    ):
        sure = pair.rule is not None and not worded(pair.rejected)
        message = "answers a harmless prompt, and is rejected"
        yield Finding(
            pair.id, "rejected_answers", "error" if sure else "warning", "rejected", message
        )


def harmful_row(pair: PreferencePair, chosen: Verdict, rejected: Verdict) -> Iterator[Finding]:
    """A harmful prompt: chosen refuses; rejected does not, unless a guard has found it unsafe all
    the same."""
    if chosen.refusal == "none":
        severity: Severity = "warning" if worded(pair.chosen) else "error"
        yield Finding(
            pair.id, "chosen_complies", severity, "chosen", "does not refuse a harmful prompt"
        )
    elif chosen.refusal == "partial":
        yield Finding(
            pair.id,
            "chosen_complies",
            "warning",
            "chosen",
            "refuses a harmful prompt, but not in full",
        )
    if rejected.refused:
        guarded = any(v.unsafe_probability is not None for v in pair.verdicts)
        sure = (
            pair.rule == "containment"
            and rejected.refusal == "full"
            and not guarded
            and worded(pair.rejected)
        )
        message = f"refuses a harmful prompt ({rejected.refusal}), and is rejected"
        yield Finding(
            pair.id, "rejected_refuses", "error" if sure else "warning", "rejected", message
        )


def likeness(one: str, other: str) -> float:
    """Share of words that both texts have in the same order, from `ALIKE` on; 1 for equal words, 0
    for less."""
    a, b = one.lower().split(), other.lower().split()
    if a == b:
        return 1.0
    matcher = SequenceMatcher(None, a, b, autojunk=False)
    if matcher.real_quick_ratio() < ALIKE or matcher.quick_ratio() < ALIKE:
        return 0.0
    ratio = matcher.ratio()
    return ratio if ratio >= ALIKE else 0.0


def contradictions(pairs: Iterable[PreferencePair]) -> Iterator[Finding]:
    """Rows that prefer for one prompt what another row rejects, and rows that come twice."""
    rejected: dict[str, set[str]] = defaultdict(set)
    pairs = list(pairs)
    for pair in pairs:
        rejected[pair.prompt.id].add(pair.rejected.strip())
    seen: set[str] = set()
    for pair in pairs:
        if (
            pair.chosen.strip() in rejected[pair.prompt.id]
            and pair.chosen.strip() != pair.rejected.strip()
        ):
            yield Finding(
                pair.id,
                "contradiction",
                "error",
                "chosen",
                "another row rejects the same text for this prompt",
            )
        if pair.id in seen:
            yield Finding(pair.id, "repeated", "warning", "both", "the row comes twice")
        seen.add(pair.id)


# --- tokens ---------------------------------------------------------------------------------------


def control_tokens(pair: PreferencePair, template: ChatTemplate | None) -> Iterator[Finding]:
    """Control tokens written out in the texts. The template breaks them up, so a prompt stays safe,
    but a side is spoiled."""
    texts: list[tuple[Side, str]] = [("chosen", pair.chosen), ("rejected", pair.rejected)]
    texts += [("prompt", m.content) for m in pair.prompt.messages]
    for side, text in texts:
        usual = [m[0] for m in CONTROL.finditer(text)]
        own = template is not None and template.neutral(text) != text
        if not usual and not own:
            continue
        severity: Severity = (
            "error" if side != "prompt" and (own or template is None) else "warning"
        )
        check = written_check(text, template)
        which = f" ({usual[0]})" if usual else ""
        yield Finding(pair.id, check, severity, side, f"holds a control token as text{which}")


ENDS = re.compile(
    r"(?:<\|(?:im_end|eot_id|end|endoftext|end_of_text|return)\|>|</s>|<end_of_turn>|<eos>)\s*\Z"
)
BEGINS = re.compile(r"\s*(?:<\|begin_of_text\|>|<s>|<bos>)")


def written_check(text: str, template: ChatTemplate | None) -> str:
    """Which check a written control token fails: a second end of turn, a second BOS, or any other
    token."""
    tokenizer = template.tokenizer if template else None
    end, begin = (getattr(tokenizer, name, None) for name in ("eos_token", "bos_token"))
    if ENDS.search(text) or (end and text.rstrip().endswith(end)):
        return "double_end_of_turn"
    return (
        "double_bos"
        if BEGINS.match(text) or (begin and text.lstrip().startswith(begin))
        else "control_token"
    )


class Rendered(NamedTuple):
    """Both sides as token rows; None, and what went wrong, where the template cannot say which
    tokens are the response's."""

    chosen: Turn | None
    rejected: Turn | None
    faults: dict[str, str]


def rendered(pair: PreferencePair, template: ChatTemplate) -> Rendered:
    """Both sides of a pair under the template."""
    turns: dict[str, Turn | None] = {}
    faults = {}
    for side, text in (("chosen", pair.chosen), ("rejected", pair.rejected)):
        try:
            turns[side] = template.turn(pair.prompt.messages, text)
        except ValueError as error:
            turns[side], faults[side] = None, str(error)
    return Rendered(turns["chosen"], turns["rejected"], faults)


def tokens(
    pair: PreferencePair, sides: Rendered, template: ChatTemplate, limit: int | None
) -> Iterator[Finding]:
    """What only tokens show: a prompt that is no prefix, a second BOS or end of turn, a row that is
    too long."""
    for side, fault in sides.faults.items():
        yield Finding(pair.id, "prefix", "error", side, fault)  # type: ignore[arg-type]
    for side, turn in (("chosen", sides.chosen), ("rejected", sides.rejected)):
        if turn is None:
            continue
        for check, message in token_faults(turn, template, single=len(pair.prompt.messages) == 1):
            yield Finding(pair.id, check, "error", side, message)  # type: ignore[arg-type]
        length = len(turn.prompt_ids) + len(turn.response_ids)
        if limit is not None and length > limit:
            message = f"prompt and response are {length} tokens, more than max_length {limit}"
            yield Finding(pair.id, "truncation", "error", side, message)  # type: ignore[arg-type]


def token_faults(turn: Turn, template: ChatTemplate, *, single: bool) -> Iterator[tuple[str, str]]:
    """(check, message) for a BOS or an end of turn too many. Some templates write a BOS before
    every user turn."""
    begin, end, ids = (
        template.tokenizer.bos_token_id,
        template.end_of_turn_id,
        [*turn.prompt_ids, *turn.response_ids],
    )
    twice = [a for a, b in zip(ids, ids[1:], strict=False) if a == b]
    if begin is not None and begin != end and (begin in twice or (single and ids.count(begin) > 1)):
        yield "double_bos", "the rendered row holds the BOS token twice"
    if end is not None and (end in twice or turn.response_ids.count(end) > 1):
        yield "double_end_of_turn", "the rendered row holds the end-of-turn token twice"


def openings(
    pairs: Sequence[PreferencePair], turns: Sequence[Rendered], template: ChatTemplate | None
) -> list[tuple[list[str], list[str]]] | None:
    """The first tokens of (chosen, rejected) of each pair; None without a template, or where one
    cannot be rendered."""
    if template is None or any(sides.faults for sides in turns):
        return None
    heads = (
        [turn.response_ids[:OPENING] for turn in sides[:2] if turn is not None] for sides in turns
    )
    name = template.tokenizer.convert_ids_to_tokens
    return [(name(chosen), name(rejected)) for chosen, rejected in heads]


# --- the whole set --------------------------------------------------------------------------------


def whole_set(
    pairs: Sequence[PreferencePair], refused: Sequence[bool], known: Statistics
) -> Iterator[Finding]:
    """What the set teaches besides the prompts.

    Within one of our rules the sides differ by construction, so that takes two of them, or imported
    pairs.
    """
    for opener in lonely_openers(pairs, refused):
        message = (
            f"{opener.rejected} of {opener.of} rejected refusals of {opener.rule} begin with "
            f"{opener.words!r}, and no chosen "
            "side of another rule does: a model learns to avoid the opener, not to answer. Take "
            "the chosen refusals from the same model (chosen.refusals: student)"
        )
        severity: Severity = "error" if opener.rejected >= ERROR_FROM else "warning"
        yield Finding(f"opener/{opener.words}", "opener", severity, "rejected", message)
    if min(known.num_pairs.values()) < FEWEST:
        return
    by_rule = len(known.num_pairs) > 1
    for name, told in known.prompt_free.items():
        if told.accuracy >= TOLD and (by_rule or "general" in known.num_pairs):
            shares = ", ".join(f"{rule} {share:.0%}" for rule, share in told.by_rule.items())
            message = (
                f"{told.accuracy:.0%} of {told.num_pairs} pairs are won without the prompt (mean "
                f"of {shares}; 50 % is none), by {name} such as "
                f"{', '.join(map(repr, told.words))}. Let one model write the answers of all "
                "rules, "
                "and one the refusals"
            )
            yield Finding(f"shortcut/{name}", "shortcut", "warning", "both", message)
    delta = known.lengths["all"].cliffs_delta
    if abs(delta) >= LONGER and (by_rule or pairs[0].rule is None):
        message = f"chosen sides are {'longer' if delta > 0 else 'shorter'} over all rules (Cliff's delta {delta:+.2f})"
        yield Finding("length/all", "length", "warning", "both", message)
