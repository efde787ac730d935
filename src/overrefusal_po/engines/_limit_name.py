"""The name under which a server takes the limit on new tokens: the recipe's, or the other one.

OpenAI's newer models know `max_completion_tokens` only, and most other servers know `max_tokens`
only. If a server refuses one name, the request is sent once more with the other.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from openai import APIError

logger = logging.getLogger(__name__)
MaxTokensName = Literal["max_tokens", "max_completion_tokens"]
OTHER: Mapping[str, MaxTokensName] = {
    "max_tokens": "max_completion_tokens",
    "max_completion_tokens": "max_tokens",
}
TOO_LARGE = re.compile(r"context|too (large|long|high|big)|at (least|most)|exceed", re.IGNORECASE)
"""Words about the limit's value, not about its name."""


class LimitName:
    """What one server calls the limit on new tokens, and whether the other name was tried.

    Args:
        name: what the recipe calls it.
        key: the recipe's key for it, such as engine.max_tokens_name.
    """

    def __init__(self, name: MaxTokensName, key: str) -> None:
        self.name = name
        self.key = key
        self.tried = self.told = self.settled = False
        """Whether the other name was tried, whether the server asked for it, and whether that is
        over."""

    def fits(self, body: Mapping[str, object]) -> dict[str, object]:
        """The request's fields with this name for the limit. Plain completions know one name."""
        limit = OTHER[self.name]
        if "prompt" in body or limit not in body:
            return dict(body)
        return {self.name if field == limit else field: value for field, value in body.items()}

    def answered(self) -> None:
        """Notes that the server took the name."""
        if self.tried and not self.settled:
            logger.warning(
                "the server takes the limit on new tokens as %s; %s: %s saves a request",
                *(self.name, self.key, self.name),
            )
        self.settled = True

    def another(
        self, sent: Mapping[str, object], error: APIError, field: str | None, *, answered: bool
    ) -> bool:
        """Whether to send the request again, under the name that `name` now holds.

        An error that names the limit, or says nothing about any field, is a reason to try the
        other name: once.

        Args:
            sent: the fields of the request.
            error: what came back.
            field: the field that the server refuses, if it says so.
            answered: whether the server has answered before.
        """
        if getattr(error, "status_code", None) not in (400, 422) or "prompt" in sent:
            return False
        if field is not None and field not in OTHER:
            return False
        named = names_limit(error)
        if named and self.name not in sent:
            return True  # another request has changed the name in the meantime
        if self.tried and not self.settled and (named or not self.told):
            self.name, self.settled = OTHER[self.name], True  # neither helps: back to the recipe's
        if self.tried or self.settled or not (named or (is_bare(error) and not answered)):
            return False
        self.name, self.tried, self.told = OTHER[self.name], True, named
        return True


def names_limit(error: APIError) -> bool:
    """Whether a server's error is about the name of the limit on new tokens."""
    message = str(error)
    if TOO_LARGE.search(message):
        return False
    return error.param in OTHER or any(re.search(rf"\b{name}\b", message) for name in OTHER)


def is_bare(error: APIError) -> bool:
    """Whether an error names no field, no size, and no code of its own beside its status."""
    code = str(error.code or "")
    return not error.param and code in ("", "400", "422") and not TOO_LARGE.search(str(error))
