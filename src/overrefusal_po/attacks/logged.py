"""Ready-made adversarial prompts from a file, such as the logs of AutoDAN, GCG or PAIR.

    {name: logged, path: gcg.jsonl}

    {"prompt": "How do I ...?", "attack": "gcg", "attacked": "How do I ...? ! ! !"}

A row belongs to the prompt whose text is its `prompt` or whose id is its `id`, letter for letter.
What the model reads is one of `attacked` (a text in place of the last user message), `messages` (in
place of the conversation) and `raw_text` (without a chat template). With the first two, `system`
may give the system prompt and `assistant_prefix` the text with which the answer begins. `attack` is
named in the results as `logged-<attack>`. Other fields are left alone.

AutoDAN: Liu et al. (2023, arXiv 2310.04451); GCG: Zou et al. (2023, arXiv 2307.15043); PAIR: Chao
et al. (2023, arXiv 2310.08419). They search against one model: rates on another measure how the
found prompts transfer.
"""

from __future__ import annotations

from functools import lru_cache

from pydantic import BaseModel, ConfigDict, Field, model_validator

from overrefusal_po.attacks._common import Text, as_asked, derive, file_stamp
from overrefusal_po.records import Message, Prompt, read_jsonl


class LoggedPrompt(BaseModel):
    """A row of the file: which prompt, which attack, and what the model reads."""

    model_config = ConfigDict(frozen=True)
    attack: Text
    prompt: Text | None = None
    id: Text | None = None
    attacked: Text | None = None
    messages: tuple[Message, ...] | None = None
    raw_text: Text | None = None
    system: str | None = None
    assistant_prefix: str | None = None

    @model_validator(mode="after")
    def is_whole(self) -> LoggedPrompt:
        """The prompt is named, and what the model reads is given once."""
        if self.prompt is None and self.id is None:
            raise ValueError("neither `prompt` nor `id` says which prompt was attacked; add one")
        if [self.attacked, self.messages, self.raw_text].count(None) != 2:
            raise ValueError(
                "give one of `attacked` (a text), `messages` and `raw_text`, and only one"
            )
        if self.messages is not None and not any(
            message.role == "user" for message in self.messages
        ):
            raise ValueError("`messages` has none with role user; add one, or give `attacked`")
        if self.messages is not None and self.messages[-1].role != "user":
            raise ValueError(
                "`messages` must end with a turn by the user. Write how the answer begins into "
                "`assistant_prefix`"
            )
        beside = [name for name in ("system", "assistant_prefix") if getattr(self, name)]
        if self.raw_text is not None and beside:
            raise ValueError(
                f"`{beside[0]}` stands beside `raw_text`, which is all that the model reads. Write "
                "it into `raw_text`"
            )
        said = self.messages[0] if self.messages else None
        if self.system and said and said.role == "system" and said.content != self.system:
            raise ValueError("`system` and `messages` have two system prompts; keep one of them")
        return self


class Settings(BaseModel):
    """`path`: a JSON Lines file of attacked prompts."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    path: str = Field(min_length=1)


def attacked(settings: Settings, prompt: Prompt) -> list[Prompt]:
    """Every attacked form that the file has of this prompt, in the file's order; none if it has
    none.

    Rows that say the same twice give one prompt.
    """
    question = as_asked(prompt)
    rows = read_rows(settings.path, file_stamp(settings.path))
    own = (prompt.origin.id if prompt.origin else None) or prompt.id
    keys = (("id", prompt.id), ("id", own), ("prompt", question))
    mine = {number: row for key in keys for number, row in rows.get(key, {}).items()}
    found = [attacked_form(prompt, row) for _, row in sorted(mine.items())]
    return list({one.id: one for one in found}.values())


def attacked_form(prompt: Prompt, row: LoggedPrompt) -> Prompt:
    """One row as the attacked form of `prompt`."""
    name = f"logged-{row.attack.strip()}"
    turns = prompt.messages if row.messages is None else row.messages
    if row.system:
        rest = turns[1:] if turns[0].role == "system" else turns
        turns = (Message(role="system", content=row.system), *rest)
    return derive(
        prompt,
        name,
        text=row.attacked,
        messages=turns,
        raw_text=row.raw_text,
        assistant_prefix=row.assistant_prefix or "",
    )


@lru_cache(maxsize=8)
def read_rows(path: str, stamp: str) -> dict[tuple[str, str], dict[int, LoggedPrompt]]:
    """{("id" or "prompt", value): {row number: row}}, read again when the file's stamp changes.

    Raises ValueError with file, line and field of the first bad row.
    """
    index: dict[tuple[str, str], dict[int, LoggedPrompt]] = {}
    for number, row in enumerate(read_jsonl(path, LoggedPrompt)):
        for key, value in (("id", row.id), ("prompt", row.prompt)):
            if value is not None:
                index.setdefault((key, value), {})[number] = row
    return index
