"""The nouns of the project, and their JSON Lines (`json_files`).

    prompts = read_jsonl("prompts.jsonl", Prompt)
    write_jsonl("copy.jsonl", prompts)

Every arrow between two stages is a file of these records. Ids are hashes of content and sample
number, so that the same content has the same id on every machine. This module imports neither torch
nor transformers.
"""

from __future__ import annotations

import hashlib
import json
from typing import Literal, TypedDict, Unpack

from pydantic import Field

from overrefusal_po.json_files import check_regular as check_regular
from overrefusal_po.json_files import first_fault as first_fault
from overrefusal_po.json_files import json_object as json_object
from overrefusal_po.json_files import read_jsonl as read_jsonl
from overrefusal_po.json_files import read_objects as read_objects
from overrefusal_po.json_files import read_state as read_state
from overrefusal_po.json_files import write_atomic as write_atomic
from overrefusal_po.json_files import write_jsonl as write_jsonl
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
    unfinished: bool
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
    unfinished: bool = False
    """Whether `reference` is the beginning of a response that goes on: no end of turn is trained
    behind it."""
    overcautious: str | None = None
    """What an over-refusing model would wrongly say to a benign prompt."""
    assistant_prefix: str = ""
    """Text with which the assistant's turn already begins (prefilling)."""
    raw_text: str | None = None
    """Goes to the model as plain text, without a chat template (behind a BOS, if its tokenizer
    begins plain text so); `messages` then only say what was asked."""
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

    def answered_with(self, text: str, *, unfinished: bool = False) -> Prompt:
        """The prompt with another reference."""
        return self.model_copy(update={"reference": text, "unfinished": unfinished})

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
    members: tuple[Verdict, ...] = ()
    """What each judge of a panel says; empty for other judges."""

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
    unfinished: tuple[Literal["chosen", "rejected"], ...] = ()
    """Sides after which the response goes on: no end of turn is trained behind them."""
    origin: Origin | None = None
    """The user's row behind it; None if it came from no file."""

    @property
    def label(self) -> str:
        """How a message names it: the user's own id and place, if it has them."""
        return named(self.id, self.origin)

    @property
    def answered(self) -> Prompt:
        """The prompt with the chosen side as its reference, as SFT learns it."""
        return self.prompt.answered_with(self.chosen, unfinished="chosen" in self.unfinished)


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
