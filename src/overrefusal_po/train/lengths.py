"""How long the rows of a training are: what becomes of those over `max_length`, and batches of rows
of like length.

    kept = fitting(pairs, template, max_length=512, too_long="drop")
    kept.rows, kept.left_out     # what is trained on, and the ids of what is not
    group_by_length(trainer)     # for trainer.train_sampling_strategy=group_by_length

No row is ever cut, since a cut answer is a corrupted label: TRL's `truncation_mode` has nothing
left to do. Only KTO's comparison rows (a prompt with another one's response) may be, and are
counted (`kto.warn_of_cut`).

Batches of like length are padded less, but they are not random ones: a speed-up outside of what is
exact. With a shared prefix nothing is padded anyway; it is plain rows (SFT, DeRTa without the tree)
that gain.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import Any, Generic, Literal, NamedTuple, TypeVar

from overrefusal_po.model.chat import ChatTemplate
from overrefusal_po.recipe.sections import TooLong
from overrefusal_po.records import PreferencePair, Prompt, Triple, content_id
from overrefusal_po.train.derta import longest_row, turns

logger = logging.getLogger(__name__)
R = TypeVar("R", PreferencePair, Prompt, Triple)

SHOWN_IDS = 5
"""Ids of rows left out that a log line names."""


class Fitting(NamedTuple, Generic[R]):
    """Rows that are at most `max_length` tokens long, the ids of the others, and the tokens of the
    longest row kept."""

    rows: list[R]
    left_out: list[str]
    longest: int
    max_length: int | None

    def __str__(self) -> str:
        """`; 3 of 135 pairs left out as too long (a, b, c)` behind a line of what was found; empty
        where none is."""
        if not self.left_out:
            return ""
        ids = ", ".join(self.left_out[:SHOWN_IDS]) + (
            ", ..." if len(self.left_out) > SHOWN_IDS else ""
        )
        number = len(self.rows) + len(self.left_out)
        return (
            f"; {len(self.left_out)} of {number} {noun(self.rows[0])}s left out as too long ({ids})"
        )

    def warned(self) -> list[R]:
        """The rows, with a warning that counts those left out."""
        if self.left_out:
            logger.warning("max_length is %s%s", self.max_length, self)
        return self.rows


def fitting(
    rows: Sequence[R],
    template: ChatTemplate,
    *,
    max_length: int | None,
    too_long: TooLong = "error",
    opening: int | None = None,
) -> Fitting[R]:
    """The rows that fit into `max_length` tokens (None: all of them), in their order.

    Args:
        rows: preference pairs, prompts with references, or triples.
        too_long: "error" stops at the first row that is longer; "drop" leaves such rows out.
        opening: as for `pair_length`.

    Raises:
        ValueError: a row is too long and `too_long` is "error", or all are; and what `row_length`
            raises.
    """
    lengths = [row_length(row, template, opening) for row in rows]
    over = [i for i, length in enumerate(lengths) if max_length is not None and length > max_length]
    if over and (too_long == "error" or len(over) == len(rows)):
        first = rows[over[0]]
        raise ValueError(
            f"{noun(first).capitalize()} {row_id(first)}: prompt and response are "
            f"{lengths[over[0]]} tokens, more than max_length {max_length} (as {len(over)} of all "
            f"{len(rows)} {noun(first)}s, before data.max_* draws), and no row "
            "is cut. Raise trainer.max_length"
            + (", or leave such rows out (data.too_long: drop)." if len(over) < len(rows) else ".")
        )
    out = set(over)
    kept = [i for i in range(len(rows)) if i not in out]
    longest = max((lengths[i] for i in kept), default=0)
    return Fitting([rows[i] for i in kept], [row_id(rows[i]) for i in over], longest, max_length)


def noun(row: PreferencePair | Prompt | Triple) -> str:
    """What a message calls a row."""
    return "pair" if isinstance(row, PreferencePair) else type(row).__name__.lower()


def row_id(row: PreferencePair | Prompt | Triple) -> str:
    """The row's id; a triple has its prompt's."""
    return row.prompt.id if isinstance(row, Triple) else row.id


def row_length(
    row: PreferencePair | Prompt | Triple, template: ChatTemplate, opening: int | None = None
) -> int:
    """The tokens of the longest training row that `row` may become, prompt included."""
    if isinstance(row, PreferencePair):
        return pair_length(row, template, opening)
    if isinstance(row, Triple):
        return longest_row(*turns(row, template))
    turn = template.turn(row.messages, row.reference or "")
    return len(turn.prompt_ids) + len(turn.response_ids)


def pair_length(pair: PreferencePair, template: ChatTemplate, opening: int | None = None) -> int:
    """The tokens of the longer side (of its first `opening` ones, if only these are trained on)
    with its prompt.

    As TRL tokenises it, with what the template puts behind the end of the turn (ChatML's newline).
    Raises ValueError where the sides are equal.
    """
    if pair.chosen.strip() == pair.rejected.strip():
        raise ValueError(
            f"Pair {pair.id}: chosen equals rejected ({pair.chosen[:60]!r}); there is nothing to "
            "prefer. Delete the pair."
        )
    row = template.preference_row(pair.prompt.messages, pair.chosen, pair.rejected)
    prompt = len(template.turn(pair.prompt.messages, pair.chosen).prompt_ids)
    options = row.get("chat_template_kwargs", {})
    sides = [
        template.tokenizer.apply_chat_template(
            row["prompt"] + row[side], return_dict=True, **options
        )["input_ids"]
        for side in ("chosen", "rejected")
    ]
    return prompt + max(len(ids[prompt:][:opening]) for ids in sides)


def unwritten_length(
    prompt: Prompt,
    template: ChatTemplate,
    new_tokens: int,
    *,
    eats: Literal["pairs", "triples"],
    opening: int | None = None,
) -> int:
    """The tokens that a row of `prompt` and its reference may take once the student has written the
    other response.

    That is at most `new_tokens` long. It may still take more when read again (control tokens in it
    are broken up).
    """
    safe, offsets = str(prompt.reference), template.turn(prompt.messages, "x").offsets
    written = new_tokens - max(
        i for i, (a, b) in enumerate(offsets, 1) if b > a
    )  # beside the stand-in "x"
    if eats == "triples":
        return (
            row_length(Triple(prompt=prompt, safe_response=safe, harmful_response="x"), template)
            + written
        )
    known, other = (
        PreferencePair(id=prompt.id, prompt=prompt, chosen=side, rejected="x")
        for side in (safe, "y")
    )
    whole = pair_length(other, template) + written
    asked = pair_length(other, template, 0)
    return max(pair_length(known, template, opening), min(whole, asked + (opening or whole)))


def group_by_length(trainer: Any) -> None:
    """Has the trainer draw batches of rows of like length, where its settings ask for them.

    transformers' own sampler finds no lengths in TRL's preference rows, and draws from a random
    state that a resumed run does not have. This one draws from the hash of (seed, epoch).
    """
    if trainer.args.train_sampling_strategy != "group_by_length":
        return
    from torch import Generator
    from transformers.trainer_pt_utils import LengthGroupedSampler

    class EpochSampler(LengthGroupedSampler):  # type: ignore[misc]
        """The same order in every process, and after a resume."""

        def __iter__(self) -> Any:
            seed = (
                trainer.args.data_seed if trainer.args.data_seed is not None else trainer.args.seed
            )
            self.generator = Generator().manual_seed(
                int(content_id(seed, int(trainer.state.epoch or 0)), 16)
            )
            return super().__iter__()

    shared = any(hasattr(module, "_shares_prefix") for module in trainer.model.modules())
    lengths = [step_tokens(row, shared=shared) for row in trainer.train_dataset]
    step = trainer.args.train_batch_size * trainer.args.gradient_accumulation_steps
    trainer._get_train_sampler = lambda *_: EpochSampler(step, lengths=lengths)


def step_tokens(row: Mapping[str, Any], *, shared: bool) -> int:
    """The tokens of a dataset row that a step computes, without padding: the longer side, or with
    `shared` a common beginning once and both sides."""
    if "branches" in row:
        sides = [branch["input_ids"] for branch in row["branches"]]
    elif "chosen_ids" in row:
        sides = [row["prompt_ids"] + row[side] for side in ("chosen_ids", "rejected_ids")]
    elif "completion_ids" in row:
        sides = [row["prompt_ids"] + row["completion_ids"]]
    else:
        sides = [row["input_ids"]]
    if not shared or len(sides) == 1:
        return max(map(len, sides))
    common = sum(1 for _ in takewhile(lambda both: both[0] == both[1], zip(*sides, strict=False)))
    return sum(map(len, sides)) - common
