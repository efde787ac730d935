"""The files of a run folder on first tokens, and what is read of them.

    found = read_first_tokens(folder)       # empty if they were not measured, or if they are stale
    drop_first_tokens(folder)               # nothing is known of them any longer

The tokens that open refusals are found by the judge's verdicts, so all of these files follow from
the verdicts.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from pydantic import FiniteFloat

from overrefusal_po.evaluate.metrics import handled
from overrefusal_po.evaluate.stale import is_stale
from overrefusal_po.evaluate.threshold_curve import FirstDecision, by_first_token
from overrefusal_po.records import Completion, Outcome, Prompt, Record, Verdict, read_jsonl
from overrefusal_po.run.appender import cut_torn_line, rows_if_any
from overrefusal_po.run.complete import drop_completions

FILE, TEXTS_FILE = "first_token.jsonl", "first_token_texts.jsonl"

OTHERS_FILE = "first_token_completions.jsonl"
"""What the model says after the other decision at its first token."""

LogOdds = Mapping[str, float]
"""{prompt id: first-token refusal log-odds}."""


class FirstToken(Record):
    """A row of first_token.jsonl: the log-odds that the response to a prompt opens with one of the
    tokens `openers` (ids). `margin`: by how many logits the best of them lies above the best other
    token; the response opens so if it is above 0."""

    prompt_id: str
    log_odds: FiniteFloat
    openers: tuple[int, ...]
    margin: FiniteFloat | None = None


class Decided(Record):
    """A row of first_token_texts.jsonl: whether a prompt is handled rightly (refused if it is
    harmful, answered if it is benign) when its response opens with an opener, and when it may not.
    None if the judge scored no such response.

    One of both is the model's own response. `completion` is the other one.
    """

    prompt_id: str
    margin: FiniteFloat
    opened: bool | None
    barred: bool | None
    completion: Completion
    verdict: Verdict


class FirstTokens(NamedTuple):
    """What is known of the first tokens of a run, by prompt id; `decided` is empty without
    texts."""

    log_odds: LogOdds
    decided: Mapping[str, Decided] = {}

    @property
    def exact(self) -> bool:
        """Whether its curve is that of texts."""
        return bool(self.decided)

    def decision(self, prompt: Prompt) -> FirstDecision | None:
        """What a threshold does to a prompt; None if that is not known."""
        harmful = prompt.kind == "harmful"
        if not self.exact:
            odds = self.log_odds.get(prompt.id)
            return None if odds is None else by_first_token(odds, harmful=harmful)
        row = self.decided.get(prompt.id)
        if row is None or row.opened is None or row.barred is None:
            return None
        return FirstDecision(row.margin, harmful, row.opened, row.barred)


def read_first_tokens(folder: Path, outcomes: Iterable[Outcome] | None = None) -> FirstTokens:
    """What a run folder holds of first tokens; empty if they were not measured, or if the verdicts
    in outcomes.jsonl are others than those that the tokens were found by. `outcomes`: all that
    outcomes.jsonl holds, if they were read already."""
    file, texts = folder / FILE, folder / TEXTS_FILE
    if not file.is_file() or is_stale(folder, outcomes):
        return FirstTokens({})
    rows = read_jsonl(file, FirstToken)
    decided = read_jsonl(texts, Decided) if texts.is_file() else []
    return FirstTokens(
        {row.prompt_id: row.log_odds for row in rows}, {row.prompt_id: row for row in decided}
    )


def drop_first_tokens(folder: Path) -> None:
    """Deletes what an earlier try of a run noted of first tokens."""
    for name in (FILE, TEXTS_FILE):
        (folder / name).unlink(missing_ok=True)
    drop_completions(folder / OTHERS_FILE)


def drop_unmatched_texts(folder: Path, known: Container[str]) -> None:
    """Deletes the texts behind the other decision unless the first token of each of their prompts
    is among the `known` ones (ids): they were made with other openers."""
    file = folder / OTHERS_FILE
    cut_torn_line(file)
    if any(row["prompt_id"] not in known for row in rows_if_any(file)):
        drop_completions(file)


def opens(row: FirstToken) -> bool:
    """Whether the model's own response opens with one of the openers."""
    return row.margin is not None and row.margin > 0


def decided_row(own: Outcome, other: Outcome, rows: Mapping[str, FirstToken]) -> Decided:
    """A prompt with both of its responses: the model's own, and the one after the other
    decision."""
    row = rows[own.prompt.id]
    assert row.margin is not None, "it is measured for all rows"
    sides = (own, other) if opens(row) else (other, own)
    return Decided(
        prompt_id=own.prompt.id,
        margin=row.margin,
        opened=handled(sides[0]),
        barred=handled(sides[1]),
        completion=other.completion,
        verdict=other.verdict,
    )
