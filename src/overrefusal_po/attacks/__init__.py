"""A prompt -> its attacked forms. One file an attack; its name is its name in a recipe.

Most attacks are pure: `attacked` makes the forms of one prompt. A search asks models until it has a
form: `search` gets all prompts at once, and the models as `Players`. `SearchPlug` lists what the
file of a search defines.

This file says what a file of this room defines. It imports records alone, so that any room may name
these types.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from pydantic import BaseModel, ConfigDict, Field

from overrefusal_po.records import Completion, Prompt, Record

Attack = Callable[[Prompt], list[Prompt]]
"""A prompt in, its attacked forms out."""


class AttackPlug(Protocol):
    """What a file of this room defines."""

    Settings: type[BaseModel]
    """The recipe keys of the attack."""

    # Any: each file takes the Settings that it defines itself
    def attacked(self, settings: Any, prompt: Prompt) -> list[Prompt]:
        """The attacked forms of a prompt; ValueError if it is attacked already."""


# --- searches -------------------------------------------------------------------------------------


class Helper(BaseModel):
    """A model that helps a search: where it runs, and how its replies are drawn."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)
    model: str = Field(min_length=1)
    """The model's name or path; for an engine over HTTP, its name at the server."""
    # Any: the engine's own settings, which its class checks
    engine: str | dict[str, Any] = "transformers"
    """What the model runs on, as the recipe's `engine`."""
    max_new_tokens: int = Field(default=256, gt=0)
    """The most tokens of a reply."""
    temperature: float = Field(default=0.0, ge=0)
    """0 takes the most likely token each time; above 0 the tokens are drawn by the recipe's
    seed."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Draw from the most likely tokens that together have this probability."""
    batch_size: int = Field(default=32, gt=0)
    """Requests decoded at a time by `transformers`. Servers choose their own batches."""

    @property
    def begins_replies(self) -> bool:
        """Whether the program writes how a reply begins. The model's engine has to continue it."""
        return False


class SearchSettings(BaseModel):
    """What every search takes."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)
    max_questions: int | None = Field(default=50, gt=0)
    """Harmful prompts that are attacked (a fixed subset by content hash). None: all."""


class Players(Protocol):
    """The models of a search. What they said is kept, so a resumed run asks nothing twice."""

    def replies(self, role: str, requests: Sequence[Prompt]) -> list[str | None]:
        """What the helper of this role says to each request, without its thinking; None if it gave
        no reply."""

    def responses(self, forms: Sequence[Prompt]) -> list[Completion]:
        """What the measured model says to each prompt."""


class Search(NamedTuple):
    """What a search found."""

    forms: list[tuple[Prompt, Completion]]
    """At most one attacked form of each question, and the measured model's response to it."""
    turns: Sequence[Record]
    """All that was tried, in the order in which it was tried, for the run folder."""
    facts: dict[str, object]
    """Counts, for the manifest."""
    notes: list[str]
    """Sentences that a reader of the rates needs."""


class SearchPlug(Protocol):
    """What the file of a search defines."""

    Settings: type[SearchSettings]
    """The recipe keys of the search."""

    # Any, three times: each file takes the Settings that it defines itself
    def helpers(self, settings: Any) -> Mapping[str, Helper]:
        """{role: the model that plays it}, beside the measured model."""

    def search(self, settings: Any, prompts: Sequence[Prompt], players: Players) -> Search:
        """Attacked forms of these prompts. ValueError if one is attacked already."""

    def cost(self, settings: Any, questions: int) -> str:
        """What a search on so many questions asks at most, in words."""

    def version(self, settings: Any) -> str:
        """What changes when the file's own texts do; it is part of a run's key."""
