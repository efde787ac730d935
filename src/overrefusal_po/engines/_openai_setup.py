"""What the engine `openai` and the judge `llm` share: settings without keys, the API key, and
the client. `_openai_faults` has what is wrong with a set-up.

    key = read_api_key(settings)    # from the environment variable that the settings name
    client = make_client(url, key, timeout_seconds=60, max_retries=0)

Errors name the recipe's section through `settings.owner`. No message, log line or error ever
contains a key.
"""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, ClassVar, NamedTuple
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from overrefusal_po.engines._limit_name import MaxTokensName
from overrefusal_po.recipe.words import unknown_key

if TYPE_CHECKING:
    from openai import AsyncOpenAI

OPENAI_URL = "https://api.openai.com/v1"
NO_KEY = SecretStr("none")
"""Sent if a recipe says `api_key_env: null`. The client insists on a key, and must not take one
from the environment."""

VARIABLE = re.compile(r"[A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+")
"""Names of environment variables. Narrow: a key that is here by mistake is no name, so no error
repeats it."""

SECRET_NAME = re.compile(
    r"(?:api|access|auth|secret|private|bearer)[_-]?(?:key|token)|authorization|passw"
    r"|^(?:key|token|secret|credentials?|cookie)$",
    re.IGNORECASE,
)
"""The name of a field that holds a key."""


class Owner(NamedTuple):
    """Who uses the server, as its errors call it."""

    section: str
    """The recipe's section: engine or judge."""
    plug: str
    fixes: Mapping[str, str]
    """{request field that comes from the recipe: what to change if a server refuses it}. Then the
    set-up is wrong."""
    no_quota: str = ""
    """What happens when the account has quota again."""


class ServerSettings(BaseModel):
    """Where a model is served. It never holds a key: `api_key_env` names the variable that
    does."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)
    owner: ClassVar[Owner]
    model: str | None = Field(None, min_length=1)
    """The model's name at the server."""
    base_url: str | tuple[str, ...] | None = None
    """The address, with /v1 at its end; None: OpenAI's own."""
    api_key_env: str | None = "OPENAI_API_KEY"
    """The environment variable that holds the key; None: a server without keys."""
    max_tokens_name: MaxTokensName | None = None
    """What the server calls the limit on new tokens; None: max_completion_tokens at OpenAI's own,
    else max_tokens. If the server refuses one name, the other is tried once."""
    max_reply_bytes: int = Field(16 * 2**20, ge=1024)
    """A longer reply is not read to its end, and its item fails."""

    wait_seconds: float = Field(0.0, ge=0, le=604800)
    """How long to wait if no server can be reached, or if each answers 502, 503 or 504. After that
    the run ends. 3600 waits for a server that comes back within an hour; 0 waits as long as
    max_retries lasts."""

    @property
    def limit_name(self) -> MaxTokensName:
        """What the server calls the limit on new tokens, before it has said anything."""
        return self.max_tokens_name or (
            "max_completion_tokens" if self.base_url is None else "max_tokens"
        )

    @model_validator(mode="before")
    @classmethod
    def keys_stay_out(cls, values: object) -> object:
        """Refuses unknown settings, and places that may hold a key by mistake, without repeating
        the value."""
        if not isinstance(values, dict):
            return values
        unknown = sorted(map(str, values.keys() - cls.model_fields.keys()))
        if unknown:
            owner = f"the {cls.owner.section} {cls.owner.plug}"
            hint = unknown_key(unknown[0], cls.model_fields, "", owner=owner)
            raise masked(
                unknown[0],
                f"{hint} A key never stands in a recipe: name its variable in api_key_env.",
            )
        variable, url = values.get("api_key_env"), values.get("base_url")
        if isinstance(variable, str) and not VARIABLE.fullmatch(variable):
            raise masked(
                "api_key_env",
                "no environment variable's name, such as OPENAI_API_KEY (capitals, an underscore)",
            )
        urls = url if isinstance(url, (list, tuple)) else (url,)
        if any(isinstance(one, str) and set("@?#") & set(one) for one in urls):
            raise masked(
                "base_url",
                "an address may hold no user, password or query; a key comes from api_key_env",
            )
        if secret := next(filter(SECRET_NAME.search, names_in(values.get("extra_body"))), None):
            raise masked(
                "extra_body",
                f"{secret} looks like a key, and recipes are printed and kept. Put the key into an "
                "environment variable, and its name into api_key_env",
            )
        return values


def names_in(value: object) -> Iterator[str]:
    """The names of all fields, those inside others too."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield str(name)
            yield from names_in(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from names_in(inner)


def masked(field: str, problem: str) -> ValidationError:
    """An error about a setting that hides the given value, because it may be a key."""
    fault = PydanticCustomError("setting", "{problem}", {"problem": problem})
    return ValidationError.from_exception_data(
        "Settings", [{"type": fault, "loc": (field,), "input": "not shown"}]
    )


def is_address(url: str) -> bool:
    """Whether `url` is http or https with a host."""
    parts = urlsplit(url)
    return parts.scheme in ("http", "https") and bool(parts.hostname)


def read_api_key(settings: ServerSettings) -> SecretStr:
    """The API key from the environment variable that the settings name.

    Raises:
        ValueError: the openai package is missing, the variable is not set, or its value cannot be
            a key.
    """
    section, plug = settings.owner.section, settings.owner.plug
    if importlib.util.find_spec("openai") is None:
        raise ValueError(
            f'the {section} {plug} needs the package openai: pip install "overrefusal-po[openai]"'
        )
    if settings.api_key_env is None:
        if settings.base_url is None:
            raise ValueError(
                f"{section}.api_key_env is null, but OpenAI's own service needs a key. Name the "
                f"environment variable that holds it, or give {section}.base_url of a server "
                "without keys."
            )
        return NO_KEY
    key = os.environ.get(settings.api_key_env, "").strip()
    if not key:
        raise ValueError(
            f"{section}.api_key_env names the environment variable {settings.api_key_env}, which "
            "is not set or empty. Set it to the key, or write `api_key_env: null` for a server "
            "without keys."
        )
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise ValueError(
            f"the environment variable {settings.api_key_env} holds blanks, line ends or letters "
            "beyond ASCII, which no key has. Set it again (the value is not shown here)."
        )
    return SecretStr(key)


def make_client(
    url: str, key: SecretStr, settings: ServerSettings, *, timeout_seconds: float, max_retries: int
) -> AsyncOpenAI:
    """An asynchronous client of the server at `url`, see `_openai_client`."""
    from overrefusal_po.engines._openai_client import bounded_client

    return bounded_client(
        url,
        key,
        timeout_seconds=timeout_seconds,
        max_retries=max_retries,
        max_reply_bytes=settings.max_reply_bytes,
    )
