"""Pure: a prompt -> its attacked forms. One file an attack; its name is its name in a recipe.

This file says what a file of this room defines. It imports records alone, so that any room may name
these types.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from pydantic import BaseModel

from overrefusal_po.records import Prompt

Attack = Callable[[Prompt], list[Prompt]]
"""A prompt in, its attacked forms out."""


class AttackPlug(Protocol):
    """What a file of this room defines."""

    Settings: type[BaseModel]
    """The recipe keys of the attack."""

    # Any: each file takes the Settings that it defines itself
    def attacked(self, settings: Any, prompt: Prompt) -> list[Prompt]:
        """The attacked forms of a prompt; ValueError if it is attacked already."""
