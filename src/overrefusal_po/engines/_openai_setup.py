"""What the engine `openai` and the judge `llm` share: settings without keys, the key, the client,
and what is wrong.

    key = key_of(settings)
    # from the environment variable that the settings name
    client = make_client(url, key, timeout_seconds=60, max_retries=0)
    wrong_setup(error, settings, url, model, answered=False)
    # a sentence, or None: the fault is this request's own

Errors name the recipe's section through `settings.owner`. No message, log or error ever holds a
key.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import re
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, ClassVar, NamedTuple
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from overrefusal_po.recipe.words import unknown_key

OPENAI_URL = "https://api.openai.com/v1"
CONNECT_SECONDS = 10.0
NO_KEY = SecretStr("none")
"""Sent where a recipe says `api_key_env: null`: the client insists on a key, and must not take one
that lies about."""

VARIABLE = re.compile(r"[A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+")
"""Names of environment variables; narrow, so that a key that was put here by mistake is no name and
is not repeated."""

UNSUPPORTED = ("unsupported_parameter", "unsupported_value")
SHOWN = 200
"""Characters of a server's message that are passed on."""


class Owner(NamedTuple):
    """Whose set-up it is, in the words of its errors."""

    section: str
    """Of a recipe: engine or judge."""
    plug: str
    parameters: tuple[str, ...]
    """Fields of a request that come from the recipe, so that a server which refuses one is a wrong
    set-up."""
    unsent: str
    """How a refused parameter is left out."""
    no_quota: str = ""
    """What happens when the account has quota again."""


class ServerSettings(BaseModel):
    """Where a model is served. No key ever stands here: `api_key_env` names the variable that holds
    it."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    owner: ClassVar[Owner]
    model: str | None = Field(None, min_length=1)
    """The model's name at the server."""
    base_url: str | tuple[str, ...] | None = None
    """The address up to and with /v1; None: OpenAI's own."""
    api_key_env: str | None = "OPENAI_API_KEY"
    """The environment variable that holds the key; None: a server without keys."""

    @model_validator(mode="before")
    @classmethod
    def keys_stay_out(cls, values: Any) -> Any:
        """Unknown settings, and places where a key could stand by mistake, are errors that do not
        repeat the value."""
        if not isinstance(values, dict):
            return values
        unknown = sorted(map(str, values.keys() - cls.model_fields.keys()))
        if unknown:
            hint = unknown_key(
                unknown[0], cls.model_fields, "", owner=f"the {cls.owner.section} {cls.owner.plug}"
            )
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
        return values


def masked(field: str, problem: str) -> ValidationError:
    """An error about a setting that does not show what was given, because that may be a key."""
    fault = PydanticCustomError("setting", "{problem}", {"problem": problem})
    return ValidationError.from_exception_data(
        "Settings", [{"type": fault, "loc": (field,), "input": "not shown"}]
    )


def is_address(url: str) -> bool:
    """Whether it is http or https with a host."""
    parts = urlsplit(url)
    return parts.scheme in ("http", "https") and bool(parts.hostname)


def key_of(settings: ServerSettings) -> SecretStr:
    """The key from the environment variable that the settings name.

    Raises ValueError where the openai package is missing, the variable is not set, or what it holds
    can be no key.
    """
    section, plug = settings.owner[:2]
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
            "is not set or empty. Set "
            "it to the key, or write `api_key_env: null` for a server without keys."
        )
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise ValueError(
            f"the environment variable {settings.api_key_env} holds blanks, line ends or letters "
            "beyond ASCII, which no "
            "key has. Set it again (the value is not shown here)."
        )
    return SecretStr(key)


def make_client(url: str, key: SecretStr, *, timeout_seconds: float, max_retries: int) -> Any:
    """An asynchronous client; the address is said, so that no environment variable decides who
    answers."""
    from openai import AsyncOpenAI, Timeout

    timeout = Timeout(timeout_seconds, connect=min(CONNECT_SECONDS, timeout_seconds))
    return AsyncOpenAI(
        api_key=key.get_secret_value(), base_url=url, timeout=timeout, max_retries=max_retries
    )


def wrong_setup(
    error: Any,
    settings: ServerSettings,
    url: str,
    model: str,
    *,
    answered: bool,
    may_be_gone: bool = False,
) -> str | None:
    """What is wrong with the set-up and what to do, None where the fault is this request's own.

    Args:
        error: an APIError of the openai package.
        settings: of the plug that asked.
        url: of the server that was asked.
        model: the name that was asked for.
        answered: whether a server has ever answered.
        may_be_gone: whether a server that cannot be reached is no wrong set-up.
    """
    from openai import (
        APIConnectionError,
        AuthenticationError,
        BadRequestError,
        NotFoundError,
        PermissionDeniedError,
    )

    own = settings.owner
    server = f"{own.section}.base_url {url}" if settings.base_url else f"OpenAI ({OPENAI_URL})"
    if isinstance(error, APIConnectionError):
        if may_be_gone or not nobody_there(error):
            return None  # or it was there, and this one reply broke off or took too long
        return f"{server} cannot be reached. Start the server or correct the address"
    # a server that has answered and then forbids one item objects to what stands in it
    if isinstance(error, AuthenticationError) or (
        isinstance(error, PermissionDeniedError) and not answered
    ):
        named = (
            f"the key in {settings.api_key_env}"
            if settings.api_key_env
            else "a request without a key"
        )
        return f"{server} does not accept {named}. Set {own.section}.api_key_env to the variable that holds the right key"
    if isinstance(error, NotFoundError) or error.code == "model_not_found":
        keys = (f"{own.section}.model", f"{own.section}.base_url")
        return f"{server} does not know the model {model!r}. Correct {keys[0]}, or the path in {keys[1]}"
    if error.code == "insufficient_quota":
        return f"{server} says that the account has no quota left{own.no_quota}"
    # some servers name max_tokens, too, when one item alone is too long for the model
    ours = error.param in own.parameters and (not answered or error.code in UNSUPPORTED)
    if isinstance(error, BadRequestError) and ours:
        return (
            f"{server} refuses {error.param} for {model!r}. Change it in the recipe; {own.unsent}"
        )
    return None


def nobody_there(error: Any) -> bool:
    """Whether no connection was made at all."""
    return type(error.__cause__).__name__ in ("ConnectError", "ConnectTimeout")


def shown(what: str, error: Any, key: SecretStr) -> str:
    """`what` with the server's message on one line, shortened, the key taken out."""
    cause = f": {error.__cause__}" if error.__cause__ else ""
    detail = detail_of(getattr(error, "body", None))
    message = " ".join(f"{error}{detail and f' {detail}'}{cause}".split())
    if key is not NO_KEY:
        message = message.replace(key.get_secret_value(), "[key]")
    return f"{what} ({message[:SHOWN]})"


def detail_of(body: Any) -> str:
    """What FastAPI's errors say under "detail", which the client leaves out of its message; never
    what was sent."""
    detail = body.get("detail") if isinstance(body, dict) else None
    if isinstance(detail, list):  # each entry has the faulty `input`, too: prompts and responses
        rows = [row for row in detail if isinstance(row, dict) and isinstance(row.get("loc"), list)]
        return "; ".join(f"{'.'.join(map(str, row['loc']))}: {row.get('msg', '')}" for row in rows)
    return detail if isinstance(detail, str) else ""


def first_choice(found: Any) -> Any:
    """The first choice of a (chat) completion, None without one; a server may leave out or add
    anything."""
    choices = getattr(found, "choices", None)
    return choices[0] if isinstance(choices, list) and choices else None


@contextmanager
def own_loop() -> Iterator[Callable[[Coroutine[Any, Any, Any]], Any]]:
    """`run(coroutine)` on one event loop, also where another runs already, as in a notebook."""
    with asyncio.Runner() as runner:
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            yield runner.run
            return
        with ThreadPoolExecutor(1) as other:
            try:
                yield lambda work: other.submit(runner.run, work).result()
            finally:
                other.submit(runner.close).result()
