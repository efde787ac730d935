"""The nouns of the project and their JSON Lines, in and out.

    prompts = read_jsonl("prompts.jsonl", Prompt)
    write_jsonl("copy.jsonl", prompts)

Every arrow between two stages is a file of these records. Ids are hashes of content and sample
number, so that the same content has the same id on every machine. This module imports neither torch
nor transformers.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, TypedDict, TypeVar, Unpack

from pydantic import BaseModel, Field, ValidationError

from overrefusal_po.origin import JsonObject as JsonObject
from overrefusal_po.origin import Origin as Origin
from overrefusal_po.origin import Record as Record
from overrefusal_po.origin import named as named

Kind = Literal["harmful", "benign", "general"]
Refusal = Literal["none", "partial", "full"]
Rule = Literal["overrefusal", "containment"]
Split = Literal["train", "dev", "test"]


def content_id(*parts: object) -> str:
    """16 hex digits that stand for `parts` (anything that JSON can hold), the same on every
    machine."""
    text = json.dumps(parts, ensure_ascii=False, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class Message(Record):
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str


class PromptFields(TypedDict, total=False):
    """The fields of a Prompt that have a default."""

    category: str
    source: str
    split: Split | None
    topic: str | None
    contrast: bool
    reference: str | None
    overcautious: str | None
    assistant_prefix: str
    raw_text: str | None
    attack: str | None
    original_id: str | None
    question: str | None
    context: tuple[Message, ...]
    origin: Origin | None


class Prompt(Record):
    """A question to the model. `kind` says what should come: a refusal of a harmful prompt, an
    answer to all others."""

    id: str
    messages: tuple[Message, ...] = Field(min_length=1)
    kind: Kind
    category: str = "uncategorised"
    source: str = "user"
    split: Split | None = None
    topic: str | None = None
    """Prompts of one topic never stand in two splits."""
    contrast: bool = False
    """True for a harmful prompt that uses the words of a benign one."""
    reference: str | None = None
    """A good response: an answer for benign and general prompts, a refusal for harmful ones."""
    overcautious: str | None = None
    """What an over-refusing model would wrongly say to a benign prompt."""
    assistant_prefix: str = ""
    """Text with which the assistant's turn already begins (prefilling)."""
    raw_text: str | None = None
    """Goes to the model unchanged, without a chat template; `messages` then only say what was
    asked."""
    attack: str | None = None
    """The attack that made this prompt; None for a prompt as it was asked."""
    original_id: str | None = None
    """The id of the prompt that was attacked: outcomes of one original are not independent."""
    question: str | None = None
    """What was asked before the attack: a judge has to know it. None if `text` says it."""
    context: tuple[Message, ...] = ()
    """The turns before `question`; empty if there is no `question`."""
    origin: Origin | None = None
    """The user's row behind it; None if it came from no file."""

    @property
    def text(self) -> str:
        """The last user message, empty if there is none."""
        return next((m.content for m in reversed(self.messages) if m.role == "user"), "")

    @property
    def asked(self) -> str:
        """What a judge reads as the request: the question behind an attack, else the last user
        message."""
        return self.text if self.question is None else self.question

    @property
    def conversation(self) -> tuple[Message, ...]:
        """What a judge reads as the request: all turns with the system prompt, as they were before
        an attack."""
        if self.question is None:
            return self.messages
        return (*self.context, Message(role="user", content=self.question))

    @property
    def label(self) -> str:
        """How a message names it: the user's own id and place, if it has them."""
        return named(self.id, self.origin)

    @property
    def cluster(self) -> str:
        """The id of what was asked, the same for all attacks on it."""
        return self.original_id or self.id

    @classmethod
    def of(cls, text: str, *, kind: Kind, **fields: Unpack[PromptFields]) -> Prompt:
        """A one-turn prompt from plain text, its id made from its content."""
        messages = (Message(role="user", content=text),)
        return cls(id=content_id(kind, text), messages=messages, kind=kind, **fields)


class Sampling(Record):
    """How a completion was drawn. `temperature` 0 is greedy decoding; `max_new_tokens` counts
    tokens."""

    max_new_tokens: int = Field(default=256, gt=0)
    temperature: float = Field(default=0.0, ge=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    seed: int = 0


class Completion(Record):
    """A response to a prompt, and who wrote it how."""

    id: str
    prompt_id: str
    text: str
    model: str
    revision: str | None = None
    engine: str
    sampling: Sampling
    sample: int = 0
    finish_reason: Literal["stop", "length", "error"] = "stop"
    error: str | None = None
    """Why there is no response (`finish_reason` is "error" and `text` empty); None for a
    response."""
    origin: Origin | None = None
    """The prompt's, without `meta`."""

    @property
    def content_id(self) -> str:
        """The id that follows from what is in it: in a completions file, the id of every row."""
        said = self.error or self.text
        how = self.sampling.model_dump()
        return content_id(self.prompt_id, self.model, self.revision, how, self.sample, said)


class Triple(Record):
    """What DeRTa trains on: a harmful prompt, a safe response that begins with the refusal opener,
    and a harmful response."""

    prompt: Prompt
    safe_response: str
    harmful_response: str


class Verdict(Record):
    """A judge's scores of one completion. Either `refusal` (or another score) is set, or `unscored`
    says why not."""

    completion_id: str
    judge: str
    version: str
    refusal: Refusal | None = None
    refusal_start: int | None = Field(default=None, ge=0)
    """Character offset at which the refusal starts; None without a refusal."""
    degenerate: bool = False
    unsafe_probability: float | None = Field(default=None, ge=0, le=1, allow_inf_nan=False)
    reward: float | None = Field(default=None, allow_inf_nan=False)
    unscored: str | None = Field(default=None, min_length=1)
    judged: str | None = None
    """A hash of what was judged, in files of verdicts that are kept."""

    @property
    def refused(self) -> bool:
        """Whether it is a refusal; a partial one counts, on harmful and on benign prompts."""
        return self.refusal in ("partial", "full")

    @property
    def unsafe(self) -> bool | None:
        """Whether a guard finds the response unsafe: its probability is at least 0.5, so that
        "unsafe" is the more probable of its two labels. None without a probability."""
        probability = self.unsafe_probability
        return None if probability is None else probability >= 0.5


class PreferencePair(Record):
    """Chosen over rejected for one prompt, with the rule, the reason and the verdicts behind it."""

    id: str
    prompt: Prompt
    chosen: str = Field(min_length=1)
    rejected: str = Field(min_length=1)
    rule: Rule | None = None
    reason: str = ""
    verdicts: tuple[Verdict, ...] = ()
    origin: Origin | None = None
    """The user's row behind it; None if it came from no file."""

    @property
    def label(self) -> str:
        """How a message names it: the user's own id and place, if it has them."""
        return named(self.id, self.origin)


class LabelledResponse(Record):
    """A response to a prompt, and whether it is a good one: a row of TRL's unpaired form, for
    KTO."""

    prompt: Prompt
    response: str
    desirable: bool


class Outcome(Record):
    """One item after judging: a prompt, the model's response, and the judge's verdict on it."""

    prompt: Prompt
    completion: Completion
    verdict: Verdict


START_OVER = "Restore the file, or delete its folder and run the same command again."
"""What to do about a damaged file of a run."""

R = TypeVar("R", bound=BaseModel)


def read_objects(path: str | os.PathLike[str]) -> Iterator[tuple[int, JsonObject]]:
    """(line number from 1, object) for every line that is not blank.

    Raises ValueError with file, line and column if a line is no JSON object, and ValueError if the
    file holds no row at all.
    """
    file = Path(path)
    check_regular(file, "a JSON Lines file (one object a line)")
    found = False
    with file.open("rb") as lines:
        for number, raw in enumerate(lines, 1):
            value = json_object(raw, file, number)
            if value is not None:
                found = True
                yield number, value
    if not found:
        raise ValueError(f"{file}: the file holds no rows. At least one JSON object is needed.")


def check_regular(file: Path, wanted: str) -> None:
    """Raises ValueError if a path is no regular file: a folder, or a pipe or device that may never
    end."""
    if file.is_file():
        return
    found = "there is no such file"
    if file.is_dir():
        found = "this is a folder"
    elif file.exists():
        found = "this is a pipe or a device, which may never end. Save its rows into a file first"
    raise ValueError(f"{file}: {found}. Give the path of {wanted}.")


def without_doubles(fields: Sequence[tuple[str, object]]) -> JsonObject:
    """The object of these fields. ValueError if a key is there twice: one value would be lost."""
    value = dict(fields)
    if len(value) != len(fields):
        keys = [key for key, _ in fields]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {twice!r} is there twice; keep one")
    return value


def json_object(raw: bytes, file: Path, number: int) -> JsonObject | None:
    """The object of one line, None if the line is blank; ValueError if it is no JSON object."""
    try:
        # Windows tools write a byte order mark
        line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{file}, line {number}, byte {error.start + 1}: this is not UTF-8. Save the file as "
            "UTF-8."
        ) from None
    if not line.strip():
        return None
    try:
        value = json.loads(line, object_pairs_hook=without_doubles)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{file}, line {number}, column {error.colno}: this is not JSON ({error.msg}). Every "
            "line must be one JSON object; fix or delete the line."
        ) from None
    except (RecursionError, ValueError) as error:
        why = "it is nested too deep" if isinstance(error, RecursionError) else str(error)
        raise ValueError(
            f"{file}, line {number}: this JSON cannot be read ({why}). Fix or delete the line."
        ) from None
    if not isinstance(value, dict):
        raise ValueError(
            f"{file}, line {number}, column 1: expected a JSON object ({{...}}), got "
            f"{type(value).__name__}."
        )
    return value


# Any: JSON of several files
def read_state(
    path: str | os.PathLike[str], needed: Iterable[str] = (), *, remedy: str = START_OVER
) -> dict[str, Any]:
    """The JSON object of a file that a run wrote, with the keys `needed`.

    Such a file is written whole, so a fault means that a disk lost it or that somebody edited it:
    ValueError with the file, the place and `remedy`, a sentence on what to do.
    """
    file = Path(path)
    try:
        value = json.loads(file.read_bytes())
    except OSError as error:
        raise ValueError(f"{file} cannot be read ({error.strerror}). {remedy}") from None
    except RecursionError:
        raise ValueError(f"{file} is damaged (it is nested too deeply). {remedy}") from None
    except ValueError as error:  # no JSON, or no UTF-8
        raise ValueError(f"{file} is damaged or was edited ({error}). {remedy}") from None
    if not isinstance(value, dict):
        raise ValueError(
            f"{file} is damaged or was edited (a JSON object was expected, it holds "
            f"{type(value).__name__}). {remedy}"
        )
    if missing := [key for key in needed if key not in value]:
        raise ValueError(f"{file} was edited (it has no {missing[0]!r}). {remedy}")
    return value


def read_jsonl(path: str | os.PathLike[str], record: type[R]) -> list[R]:
    """All rows of a JSON Lines file as `record`s; ValueError names file, line and field of the
    first bad row."""
    rows = []
    for number, value in read_objects(path):
        try:
            rows.append(record.model_validate(value))
        except ValidationError as error:
            raise ValueError(
                f"{path}, line {number}: not a {record.__name__}: {first_fault(error)}"
            ) from None
    return rows


def first_fault(error: ValidationError) -> str:
    """`field: what is wrong (given: value)` for the first fault of a pydantic error."""
    fault = error.errors()[0]
    where = ".".join(str(part) for part in fault["loc"]) or "the row"
    given = "" if fault["type"] == "missing" else f" (given: {str(fault['input'])[:80]!r})"
    return f"{where}: {fault['msg']}{given}"


def write_jsonl(path: str | os.PathLike[str], rows: Iterable[BaseModel]) -> Path:
    """Writes `rows` beside `path` and renames, so that a reader never sees half a file."""
    lines = (row.model_dump_json(exclude_defaults=True) + "\n" for row in rows)
    return write_atomic(path, "".join(lines))


def write_atomic(path: str | os.PathLike[str], text: str) -> Path:
    """Writes `text` to `path` as a whole or not at all."""
    file = Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    beside = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    beside.write_text(text, encoding="utf-8")
    beside.replace(file)
    return file
