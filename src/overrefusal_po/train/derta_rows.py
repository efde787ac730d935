"""(prompt, safe response, harmful response) -> rows with labels; a collator that redraws labels.

    token = refusal_token(template, "Sorry")
    rows = derta_rows(triples, triple_sides(triples, template), token, seed=0)
    batch = DertaCollator(pad_token_id=0, rto_dropout=0.95, seed=0)(rows[:8])

DeRTa (arXiv 2407.09121, section 3): q is a harmful question, r a safe and h a harmful response, and
k is drawn from 0..|h|:

    L = - E log P(r | q, h_<k)                       prefix rows: no loss on the harmful prefix
        - E sum_t log P(refusal token | q, h_<t)     RTO rows: each position of h has that label

The ablation also has safe rows, which are prefix rows without a prefix (`recipe.harmful_rows`).
All tokens that carry loss go into one mean cross-entropy. Harmful tokens are never trained on.
Shapes: B batch rows, T tokens. This module imports torch only inside the collator.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypedDict

from overrefusal_po.identity import word_ends
from overrefusal_po.model.chat import ChatTemplate, Turn
from overrefusal_po.recipe.harmful_rows import DERTA_ROWS, HarmfulRow, checked_rows
from overrefusal_po.records import Message, Prompt, Triple, content_id
from overrefusal_po.train.data import check_rendered, rendered

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import Tensor

logger = logging.getLogger(__name__)

IGNORED = -100
"""The label that cross-entropy leaves out (torch's default ignore_index)."""

BENIGN_OPENERS = ("Sure", "Here", "Yes", "To", "The", "I", "Of course", "Certainly", "You", "There")
"""With what helpful answers often begin; RTO must not teach the first token of one of these."""

RowKind = Literal[HarmfulRow, "sft"]
PrefixUnit = Literal["words", "tokens"]


class Row(NamedTuple):
    """One training row. `labels[i]` is the label of token i (-100: none)."""

    input_ids: list[int]
    labels: list[int]
    kind: RowKind
    row_id: str

    def columns(self) -> RowColumns:
        """The row as a dataset gives it."""
        return {
            "input_ids": self.input_ids,
            "labels": self.labels,
            "kind": self.kind,
            "row_id": self.row_id,
        }


class RowColumns(TypedDict):
    """A `Row` out of a dataset."""

    input_ids: Sequence[int]
    labels: Sequence[int]
    kind: RowKind
    row_id: str


def check_openers(safe: Iterable[tuple[str, str]], opener: str) -> None:
    """Raises ValueError for the first (prompt id, safe response) without the refusal opener."""
    stray = next(((key, text) for key, text in safe if not text.startswith(opener)), None)
    if stray is not None:
        raise ValueError(
            f"Safe responses must begin with the refusal opener {opener!r} (data.refusal_opener), "
            f"which RTO teaches at every position; the one for prompt {stray[0]} begins with "
            f"{stray[1][:30]!r}. Change the opener or the response, or set data.safe_lead."
        )


def refusal_token(template: ChatTemplate, opener: str = "Sorry") -> int:
    """The id of `opener`'s first token at the start of a response under the chat template.

    Raises ValueError if common openers of helpful answers begin with the same token: RTO would
    then teach them too.
    """
    token, count = template.first_response_token(opener)
    text = template.tokenizer.convert_ids_to_tokens(token)
    clash = [o for o in BENIGN_OPENERS if template.first_response_token(o)[0] == token]
    if clash:
        raise ValueError(
            f"The refusal opener {opener!r} begins with the token {text!r}, with which helpful "
            f"answers begin too ({', '.join(clash)}). Choose an opener whose first token is its "
            "own (data.refusal_opener)."
        )
    if count == 1:
        logger.info("refusal token: %r (id %d) is the whole opener %r", text, token, opener)
    else:
        words = "refusal token: %r (id %d) is the first of %d of the opener %r"
        logger.info(words, text, token, count, opener)
    return token


DRAWS = 100
"""Draws of a second k at most. Each is another one than the first with a chance of a third."""


class TripleTurns(NamedTuple):
    """Both responses of a triple, each as a turn behind its prompt."""

    harmful: Turn
    safe: Turn

    @property
    def longest(self) -> int:
        """The tokens of the longest row that can be drawn.

        That row has the safe response behind all of the harmful one except its end of turn. So
        neither the seed nor the kinds of rows decide if a triple fits.
        """
        prompt, harmful, safe = self.harmful.prompt_ids, self.harmful, self.safe
        return len(prompt) + len(harmful.answer_ids) + len(safe.response_ids)


TOKENISED_TOGETHER = 256
"""Conversations in one call of the tokenizer: enough to keep all cores busy."""


def triple_sides(triples: Sequence[Triple], template: ChatTemplate) -> list[TripleTurns]:
    """Both responses of each triple as turns, tokenised in batches."""
    check_rendered([triple.prompt for triple in triples], begun=False)
    items = [
        (triple.prompt.messages, response)
        for triple in triples
        for response in (triple.harmful_response, triple.safe_response)
    ]
    turns = batched_turns(items, template, [t.prompt.label for t in triples for _ in range(2)])
    return [TripleTurns(*two) for two in zip(turns[::2], turns[1::2], strict=True)]


def prompt_turns(prompts: Sequence[Prompt], template: ChatTemplate) -> list[Turn]:
    """The reference of each prompt as a turn, an unfinished one without its end; or ValueError."""
    items = []
    check_rendered(prompts, begun=False)
    for prompt in prompts:
        if prompt.reference is None:
            raise ValueError(
                f"Prompt {prompt.label} ({prompt.text[:60]!r}) has no reference response."
            )
        items.append((prompt.messages, prompt.reference))
    turns = batched_turns(items, template, [prompt.label for prompt in prompts])
    return [t.unended if p.unfinished else t for p, t in zip(prompts, turns, strict=True)]


def batched_turns(
    items: Sequence[tuple[Sequence[Message], str]], template: ChatTemplate, labels: Sequence[str]
) -> list[Turn]:
    """The turn of each (messages, response), tokenised in batches.

    An error names the first prompt, by its label, whose turn the template cannot make.
    """

    def turns(some: Sequence[tuple[Sequence[Message], str]]) -> list[Turn]:
        starts = range(0, len(some), TOKENISED_TOGETHER)
        batches = (some[start : start + TOKENISED_TOGETHER] for start in starts)
        return [turn for batch in batches for turn in template.turns(batch)]

    return rendered(items, [f"Prompt {label}" for label in labels], turns)


def turn_length(turn: Turn) -> int:
    """The tokens of a prompt with its response."""
    return len(turn.prompt_ids) + len(turn.response_ids)


def derta_rows(
    triples: Sequence[Triple],
    sides: Sequence[TripleTurns],
    token: int,
    *,
    seed: int = 0,
    prefix_unit: PrefixUnit = "words",
    rows: Sequence[HarmfulRow] = DERTA_ROWS,
) -> list[Row]:
    """Two rows a triple, RTO first, then prefix, then safe rows.

    `sides` are the triples' turns. Rows may have any length: see `lengths.fit`. ValueError for
    `rows` that are not two with a safe response.
    """
    kinds = checked_rows(rows)[::-1]
    made = []
    for triple, both in zip(triples, sides, strict=True):
        key = content_id(triple.prompt.id, triple.harmful_response)
        rng = random.Random(f"{seed} {key}")
        cuts = iter(prefix_lengths(both.harmful, prefix_unit, rng))
        for kind in kinds:
            if kind == "rto":
                made.append(rto_row(both.harmful, token, key))
            elif kind == "prefix":
                made.append(prefix_row(both.harmful, both.safe, next(cuts), key))
            else:
                made.append(safe_row(both.safe, key))
    return made


def rto_row(harmful: Turn, token: int, row_id: str) -> Row:
    """The harmful response with the refusal token as each label, its end of turn too.

    What the template writes behind the end of turn is left out: nothing can be refused there.
    """
    prompt = harmful.prompt_ids
    response = harmful.response_ids[: len(harmful.answer_ids) + 1]
    return Row(prompt + response, [IGNORED] * len(prompt) + [token] * len(response), "rto", row_id)


def prefix_row(harmful: Turn, safe: Turn, cut: int, row_id: str) -> Row:
    """The prompt, `cut` tokens of the harmful response (no loss), then the safe one (loss)."""
    prefix = harmful.response_ids[:cut]
    ids = safe.prompt_ids + prefix + safe.response_ids
    labels = [IGNORED] * (len(safe.prompt_ids) + len(prefix)) + safe.response_ids
    return Row(ids, labels, "prefix", row_id)


def safe_row(safe: Turn, row_id: str) -> Row:
    """The prompt, then the safe response (loss): an ordinary SFT row."""
    labels = [IGNORED] * len(safe.prompt_ids) + safe.response_ids
    return Row(safe.prompt_ids + safe.response_ids, labels, "safe", row_id)


def prefix_lengths(harmful: Turn, unit: PrefixUnit, rng: random.Random) -> tuple[int, int]:
    """Two draws of k. The second is another one unless the response is empty: k is then 0."""
    first = prefix_length(harmful, harmful.text, unit, rng)
    draws = (prefix_length(harmful, harmful.text, unit, rng) for _ in range(DRAWS))
    return first, next((k for k in draws if k != first), first)


def prefix_length(harmful: Turn, text: str, unit: PrefixUnit, rng: random.Random) -> int:
    """k: how many tokens of the harmful response the prefix has.

    "tokens" is the paper's draw: k uniform in 0..|h|. "words" is the draw of the released code:
    k = 0 for every third row, else 1..n-2 whole words (`spoken_words`: without blanks each letter
    is one). Here chance picks the third from the row's own seed, so that order does not change the
    data.
    """
    ends = [b for a, b in harmful.offsets if b > a]
    # Tokens before the response's first character, as the space of Mistral's "[/INST] To". They
    # belong to every prefix that is not empty.
    glue = next((i for i, (a, b) in enumerate(harmful.offsets) if b > a), 0)
    if unit == "tokens":
        kept = rng.randint(0, len(ends))
    elif rng.random() < 1 / 3:
        kept = 0
    else:
        words = word_ends(text)
        whole = rng.randint(1, max(1, len(words) - 2))
        last = words[min(whole, len(words)) - 1] if words else 0
        kept = sum(1 for end in ends if end <= last)
    return glue + kept if kept else 0


def sft_row(prompt: Prompt, turn: Turn) -> Row:
    """The row of a helpful prompt: loss on the response alone."""
    return safe_row(turn, prompt.id)._replace(kind="sft")


def rows_dataset(rows: Sequence[Row]) -> Dataset:
    """Rows as a dataset with the columns of `Row`."""
    from datasets import Dataset

    return Dataset.from_list([row._asdict() for row in rows])


class DertaCollator:
    """Rows -> a padded batch; RTO rows keep the labels of some positions, drawn again each epoch.

    The released script for full fine-tuning drops 95 % of the positions, drawn again at each pass.
    The script for LoRA drops none. The draw comes from (seed, row id, epoch), so that order and
    world size do not change it. `EpochCallback` sets `epoch`.

    Args:
        pad_token_id: id for padding (attention mask 0, label -100).
        rto_dropout: share of RTO positions without loss, in [0, 1).
        min_kept: RTO positions that each row keeps at least (ours; the release has no minimum).
        seed: start of the draw.

    >>> rto = Row([5, 6, 7, 8], [-100, 9, 9, 9], "rto", "a")      # 9: the refusal token
    >>> prefix = Row([5, 6, 9], [-100, -100, 9], "prefix", "a")   # 6: a harmful prefix
    >>> collator = DertaCollator(pad_token_id=0, rto_dropout=0.5)
    >>> batch = collator([rto.columns(), prefix.columns()])
    >>> batch["input_ids"]
    tensor([[5, 6, 7, 8],
            [5, 6, 9, 0]])
    >>> batch["attention_mask"]
    tensor([[1, 1, 1, 1],
            [1, 1, 1, 0]])
    >>> batch["labels"]   # of the three positions of RTO two are kept
    tensor([[-100,    9,    9, -100],
            [-100, -100,    9, -100]])
    >>> collator.epoch = 1
    >>> collator([rto.columns()])["labels"]   # the next pass
    tensor([[-100, -100,    9, -100]])
    """

    def __init__(
        self, *, pad_token_id: int, rto_dropout: float = 0.95, min_kept: int = 1, seed: int = 0
    ) -> None:
        if not 0 <= rto_dropout < 1:
            raise ValueError(
                f"rto_dropout is {rto_dropout}; allowed is 0 (keep all) up to but not including 1."
            )
        self.pad_token_id = pad_token_id
        self.rto_dropout = rto_dropout
        self.min_kept = min_kept
        self.seed = seed
        self.epoch = 0

    def __call__(self, rows: Sequence[Any]) -> dict[str, Tensor]:
        """input_ids, attention_mask and labels, (B, T) each.

        Any: rows are `RowColumns` here, and trees in `TreeCollator`.
        """
        return self.padded(rows)

    def padded(self, rows: Sequence[RowColumns]) -> dict[str, Tensor]:
        """input_ids, attention_mask and labels, (B, T) each."""
        import torch

        width = max(len(row["input_ids"]) for row in rows)  # T
        batch: dict[str, list[list[int]]] = {"input_ids": [], "attention_mask": [], "labels": []}
        for row in rows:
            ids, gap = list(row["input_ids"]), width - len(row["input_ids"])
            labels = self.drop(row) if row["kind"] == "rto" else list(row["labels"])
            batch["input_ids"].append(ids + [self.pad_token_id] * gap)
            batch["attention_mask"].append([1] * len(ids) + [0] * gap)
            batch["labels"].append(labels + [IGNORED] * gap)
        return {name: torch.tensor(value) for name, value in batch.items()}  # (B, T)

    def drop(self, row: RowColumns) -> list[int]:
        """The labels of an RTO row with the dropped positions set to -100."""
        rng = random.Random(f"{self.seed} {row['row_id']} {self.epoch}")
        positions = [i for i, label in enumerate(row["labels"]) if label != IGNORED]
        kept = {i for i in positions if rng.random() >= self.rto_dropout}
        short = min(self.min_kept, len(positions)) - len(kept)
        if short > 0:
            kept |= set(rng.sample([i for i in positions if i not in kept], short))
        return [label if i in kept else IGNORED for i, label in enumerate(row["labels"])]
