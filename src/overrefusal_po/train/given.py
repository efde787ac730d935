"""What a factory was given -> the records that it trains on. No weight is loaded here.

    given_pairs(load_dataset("my/pairs", split="train"))       # preference pairs
    given_pairs([{"prompt": "How?", "chosen": "So.", "rejected": "No."}])
    given_prompts([{"messages": [...]}])                       # prompts with references
    given_triples("triples.jsonl")

Rows have TRL's forms (docs/python.md), or those of docs/files.md: one reader reads both. A wrong
form is a ValueError or a TypeError that names the row.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from pydantic import ValidationError

from overrefusal_po.json_files import check_characters
from overrefusal_po.model.chat import ChatTemplate
from overrefusal_po.pairs.files import read_row
from overrefusal_po.recipe.sections import TooLong
from overrefusal_po.records import (
    JsonObject,
    LabelledResponse,
    PreferencePair,
    Prompt,
    Record,
    Triple,
    first_fault,
)
from overrefusal_po.sources._completions import (
    answered_prompt,
    labelled_response,
)
from overrefusal_po.sources._conversations import unread_words
from overrefusal_po.sources._given import given_rows
from overrefusal_po.sources._pairs import check_own_prompt, is_ours
from overrefusal_po.sources._prompt_rows import TRIPLE_SIDES, check_labelled, own_triple, row_triple
from overrefusal_po.sources._turns import Unread
from overrefusal_po.train.data import Prepared
from overrefusal_po.train.preference import read_any_pairs
from overrefusal_po.train.rows import prepared_pairs

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

    # Any: a row holds what JSON may hold
    RowsGiven = Dataset | Sequence[Mapping[str, Any]] | str | Path
    """Rows in a form of docs/python.md: a dataset, a list, or the path of a file."""

logger = logging.getLogger(__name__)
R = TypeVar("R", bound=Record)
T = TypeVar("T")


def given_pairs(data: object, name: str = "pairs") -> Sequence[PreferencePair] | Prepared:
    """Preference pairs from pairs, rows of TRL's preference forms, a dataset, or a path."""
    if is_starter(data):
        return read_any_pairs("starter")
    return given_records(data, name, PreferencePair, pair_row)


def pair_row(row: JsonObject, place: str, unread: Unread) -> PreferencePair:
    """A row with chosen and rejected; ValueError that names the place, the way out too."""
    if "completion" in row and "chosen" not in row:
        raise ValueError(
            f"{place}: the row has a completion and no chosen and rejected side. All rows have "
            "one form. Rows with completion and label are for kto_trainer alone, those with prompt "
            "and completion for sft_trainer."
        )
    check_labelled(row, place)
    pair = read_row(row, place, unread)
    for side in ("chosen", "rejected"):
        if not getattr(pair, side).strip():
            raise ValueError(f"{place}: {side} is empty. Write the response, or delete the row.")
    return pair


def given_prompts(data: object, name: str = "prompts") -> Sequence[Prompt] | Prepared:
    """Prompts with references from prompts, rows with messages or a completion, or a path."""
    return given_records(data, name, Prompt, sft_row)


def sft_row(row: JsonObject, place: str, unread: Unread) -> Prompt:
    """A row as a prompt with a reference: a pair's chosen side, a completion, the last turn."""
    if "chosen" in row:
        return pair_row(row, place, unread).answered
    if is_our_prompt(row):
        prompt = validated(Prompt, row, place)
        check_own_prompt(prompt, place)
        return prompt
    if "text" in row and "messages" not in row and "prompt" not in row:
        raise ValueError(
            f"{place}: the row has a text and no prompt. SFT here learns answers alone: give "
            "`messages`, or `prompt` and `completion`."
        )
    return answered_prompt(row, place, unread)


def is_our_prompt(row: JsonObject) -> bool:
    """Whether a row is a Prompt of ours as JSON holds it."""
    return {"id", "kind", "messages"} <= row.keys() and "reference" in row


def given_triples(data: object, name: str = "triples") -> Sequence[Triple] | Prepared:
    """Triples from triples, rows with prompt, safe_response and harmful_response, or a path."""
    return given_records(data, name, Triple, triple_row)


def triple_row(row: JsonObject, place: str, unread: Unread) -> Triple:
    """A row as a triple; ValueError names the place and the response that is missing."""
    if is_ours(row.get("prompt")):
        return own_triple(row, place)
    for side in TRIPLE_SIDES:
        if not isinstance(row.get(side), str) or not row[side].strip():
            raise ValueError(
                f"{place}: no {side}. A row has prompt, {' and '.join(TRIPLE_SIDES)}, which are "
                f"texts. The columns found are {', '.join(row)}."
            )
    asked = {"kind": "harmful", **{k: v for k, v in row.items() if k not in TRIPLE_SIDES}}
    check_labelled(asked, place)
    prompt = answered_prompt({**asked, "response": row["safe_response"]}, place, unread)
    return row_triple(row, prompt.model_copy(update={"reference": None}), place)


def given_responses(data: object, name: str = "pairs") -> list[LabelledResponse] | None:
    """Rows with completion and label (TRL's unpaired form); None if the data have another form."""
    if isinstance(data, Prepared) or is_starter(data) or holds(data, Record):
        return None
    rows = list(given_rows(data, name))
    if not rows or "completion" not in rows[0][1] or "chosen" in rows[0][1]:
        return None
    return read_all(rows, name, labelled_response)


def is_starter(data: object) -> bool:
    """Whether the pairs of the starter set are meant."""
    return isinstance(data, str) and data == "starter"


def given_records(
    data: object, name: str, record: type[R], read: Callable[[JsonObject, str, Unread], R]
) -> Sequence[R] | Prepared:
    """Records unchanged, or rows read by `read`; a TypeError for records of another kind."""
    if isinstance(data, Prepared):
        return data
    if holds(data, Record):
        rows = cast("Sequence[object]", data)
        check_kind(rows, name, record)
        return cast("Sequence[R]", rows)
    if isinstance(data, Sequence) and not data:
        return []  # each method says itself what it needs
    return read_all(given_rows(data, name), name, read)


def holds(data: object, record: type) -> bool:
    """Whether the first row of a list is a record."""
    return isinstance(data, Sequence) and len(data) > 0 and isinstance(data[0], record)


def check_kind(rows: Sequence[object], name: str, record: type) -> None:
    """Raises TypeError for the first row that is no `record`."""
    for number, row in enumerate(rows, 1):
        if not isinstance(row, record):
            raise TypeError(
                f"{name}, row {number}: got a {type(row).__name__}. Every row must be a "
                f"{record.__name__}, or every row a dict."
            )


def read_all(rows: Any, name: str, read: Callable[[JsonObject, str, Unread], T]) -> list[T]:
    """The records of (place, row); columns that are not read are counted in the log."""
    unread: Unread = Counter()
    found = []
    for place, row in rows:
        check_template_options(row, place)
        check_characters(row, place)
        found.append(read(row, place, unread))
    if not found:
        raise ValueError(f"{name} holds no rows. Give at least one.")
    if unread:
        logger.warning("%s: columns that are not read: %s", name, unread_words(unread))
    return found


def check_template_options(row: JsonObject, place: str) -> None:
    """Raises ValueError for TRL's column of template options, which one template cannot follow."""
    if row.get("chat_template_kwargs"):
        raise ValueError(
            f"{place}: chat_template_kwargs is {row['chat_template_kwargs']!r}. Options of the "
            "template are the same for all rows here: template=ChatTemplate(tokenizer, "
            "template_kwargs={...}). Delete the column."
        )


def validated(record: type[R], row: JsonObject, place: str) -> R:
    """A row of our own form; ValueError names the place and the first fault."""
    try:
        return record.model_validate({key: v for key, v in row.items() if v is not None})
    except ValidationError as error:
        raise ValueError(f"{place}: not a {record.__name__}: {first_fault(error)}") from None


def check_opening(opening: object) -> None:
    """Raises ValueError for an opening that is no number of tokens, and not None."""
    if opening is not None and (type(opening) is not int or opening < 1):
        raise ValueError(
            f"opening is {opening!r}; allowed is a whole number of tokens above 0, or None for "
            "whole sides."
        )


def pair_preparer(
    template: ChatTemplate,
    *,
    max_length: int | None,
    opening: int | None,
    too_long: TooLong,
    kinds: bool = False,
) -> Callable[[object, str], Prepared]:
    """A function (what was given, its name) -> the rows of DPO, ORPO and CPO.

    Raises ValueError for an opening that is no number of tokens.
    """
    check_opening(opening)

    def make(data: object, name: str) -> Prepared:
        return prepared_pairs(
            given_pairs(data, name),
            template,
            max_length=max_length,
            opening=opening,
            too_long=too_long,
            kinds=kinds,
        )

    return make


def evaluation_rows(
    data: object, prepare: Callable[[object, str], Prepared]
) -> Dataset | dict[str, Dataset | IterableDataset] | None:
    """The rows of `eval_dataset`: None, one set, or a mapping of sets by name."""
    if data is None:
        return None
    if isinstance(data, Mapping | list | tuple) and not data:
        raise ValueError("eval_dataset is empty. Give at least one row, or None.")
    if isinstance(data, Mapping):
        return {
            str(name): whole(prepare(part, f"eval_dataset[{name!r}]"))
            for name, part in data.items()
        }
    return whole(prepare(data, "eval_dataset"))


def whole(prepared: Prepared) -> Dataset:
    """The rows of data that are whole."""
    assert prepared.rows is not None, "data without rows are not whole"
    return prepared.rows
