"""What the engine `openai` and the judge `llm` share: settings without keys, the API key, the
client, and what is wrong with a set-up.

    key = read_api_key(settings)    # from the environment variable that the settings name
    client = make_client(url, key, timeout_seconds=60, max_retries=0)
    wrong_setup(error, settings, url, model=model, answered=False)
    # a sentence; None if only this request is at fault

Errors name the recipe's section through `settings.owner`. No message, log line or error ever
contains a key.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import re
from collections.abc import Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol, TypeVar
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from overrefusal_po.recipe.words import unknown_key

if TYPE_CHECKING:
    from openai import APIError, AsyncOpenAI

T = TypeVar("T")
OPENAI_URL = "https://api.openai.com/v1"
CONNECT_SECONDS = 10.0
NO_KEY = SecretStr("none")
"""Sent if a recipe says `api_key_env: null`. The client insists on a key, and must not take one
from the environment."""

VARIABLE = re.compile(r"[A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+")
"""Names of environment variables. Narrow: a key that is here by mistake is no name, so no error
repeats it."""

UNSUPPORTED = ("unsupported_parameter", "unsupported_value")
SHOWN = 200
"""Characters of a server's message that an error shows."""


class Owner(NamedTuple):
    """Who uses the server, as its errors call it."""

    section: str
    """The recipe's section: engine or judge."""
    plug: str
    parameters: tuple[str, ...]
    """Request fields that come from the recipe. If a server refuses one, the set-up is wrong."""
    unsent: str
    """How to leave out a refused parameter."""
    no_quota: str = ""
    """What happens when the account has quota again."""


class ServerSettings(BaseModel):
    """Where a model is served. It never holds a key: `api_key_env` names the variable that
    does."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    owner: ClassVar[Owner]
    model: str | None = Field(None, min_length=1)
    """The model's name at the server."""
    base_url: str | tuple[str, ...] | None = None
    """The address, with /v1 at its end; None: OpenAI's own."""
    api_key_env: str | None = "OPENAI_API_KEY"
    """The environment variable that holds the key; None: a server without keys."""

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
        return values


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
    url: str, key: SecretStr, *, timeout_seconds: float, max_retries: int
) -> AsyncOpenAI:
    """An asynchronous client. The address is explicit, so no environment variable chooses it."""
    from openai import AsyncOpenAI, Timeout

    timeout = Timeout(timeout_seconds, connect=min(CONNECT_SECONDS, timeout_seconds))
    return AsyncOpenAI(
        api_key=key.get_secret_value(), base_url=url, timeout=timeout, max_retries=max_retries
    )


def wrong_setup(
    error: APIError,
    settings: ServerSettings,
    url: str,
    *,
    model: str,
    answered: bool,
    may_be_gone: bool = False,
) -> str | None:
    """What is wrong with the set-up and how to fix it; None if only this request is at fault.

    Args:
        error: what the openai package raised.
        settings: of the plug that asked.
        url: the server that was asked.
        model: the model name that was asked for.
        answered: whether any server has answered before.
        may_be_gone: whether an unreachable server is no wrong set-up.
    """
    from openai import APIConnectionError, BadRequestError, NotFoundError

    own = settings.owner
    server = f"{own.section}.base_url {url}" if settings.base_url else f"OpenAI ({OPENAI_URL})"
    if isinstance(error, APIConnectionError):
        if may_be_gone or not nobody_there(error):
            return None  # the server was there: this one reply broke off or took too long
        return f"{server} cannot be reached. Start the server or correct the address"
    if is_key_refused(error, answered):
        named = "a request without a key"
        if settings.api_key_env:
            named = f"the key in {settings.api_key_env}"
        return (
            f"{server} does not accept {named}. Set {own.section}.api_key_env to the variable "
            "that holds the right key"
        )
    if isinstance(error, NotFoundError) or error.code == "model_not_found":
        return (
            f"{server} does not know the model {model!r}. Correct {own.section}.model, or the "
            f"path in {own.section}.base_url"
        )
    if error.code == "insufficient_quota":
        return f"{server} says that the account has no quota left{own.no_quota}"
    # some servers name max_tokens also if only this item is too long for the model
    ours = error.param in own.parameters and (not answered or error.code in UNSUPPORTED)
    if isinstance(error, BadRequestError) and ours:
        return (
            f"{server} refuses {error.param} for {model!r}. Change it in the recipe; {own.unsent}"
        )
    return None


def is_key_refused(error: APIError, answered: bool) -> bool:
    """Whether the server refuses the key. If it has answered before, a 403 is about the item's
    content."""
    from openai import AuthenticationError, PermissionDeniedError

    forbidden = isinstance(error, PermissionDeniedError) and not answered
    return isinstance(error, AuthenticationError) or forbidden


def nobody_there(error: BaseException) -> bool:
    """Whether no connection was made at all."""
    return type(error.__cause__).__name__ in ("ConnectError", "ConnectTimeout")


def shown(what: str, error: Exception, key: SecretStr) -> str:
    """`what` with the server's message: on one line, shortened, without the key."""
    cause = f": {error.__cause__}" if error.__cause__ else ""
    detail = fastapi_detail(getattr(error, "body", None))
    message = " ".join(f"{error}{detail and f' {detail}'}{cause}".split())
    if key is not NO_KEY:
        message = message.replace(key.get_secret_value(), "[key]")
    return f"{what} ({message[:SHOWN]})"


def fastapi_detail(body: object) -> str:
    """The "detail" of a FastAPI error, without what was sent. The client leaves it out of its
    message."""
    detail = body.get("detail") if isinstance(body, dict) else None
    if isinstance(detail, list):  # each entry also has the faulty `input`: prompts and responses
        rows = [row for row in detail if isinstance(row, dict) and isinstance(row.get("loc"), list)]
        return "; ".join(f"{'.'.join(map(str, row['loc']))}: {row.get('msg', '')}" for row in rows)
    return detail if isinstance(detail, str) else ""


def first_choice(reply: object) -> object:
    """The first choice of a (chat) completion; None without one. A server may leave out or add
    anything."""
    choices = getattr(reply, "choices", None)
    return choices[0] if isinstance(choices, list) and choices else None


class RunCoroutine(Protocol):
    """Runs a coroutine to its end and returns its result."""

    # Any: what a coroutine yields and is sent is between it and the loop
    def __call__(self, work: Coroutine[Any, Any, T], /) -> T:
        """The result of `work`."""


@contextmanager
def own_loop() -> Iterator[RunCoroutine]:
    """`run(coroutine)` on one event loop, also if another loop runs already (in a notebook)."""
    with asyncio.Runner() as runner:
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            yield runner.run
            return
        with ThreadPoolExecutor(1) as other:

            def run(work: Coroutine[Any, Any, T], /) -> T:
                return other.submit(runner.run, work).result()

            try:
                yield run
            finally:
                other.submit(runner.close).result()
