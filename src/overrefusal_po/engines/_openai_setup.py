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

import importlib.util
import os
import re
import urllib.request
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from overrefusal_po.engines._limit_name import MaxTokensName
from overrefusal_po.engines._replies import (
    KEY_WORDS,
    SHOWN,
    UNSUPPORTED,
    said_words,
    unknown_path,
)
from overrefusal_po.recipe.words import unknown_key

if TYPE_CHECKING:
    from openai import APIError, AsyncOpenAI

OPENAI_URL = "https://api.openai.com/v1"
NO_KEY = SecretStr("none")
"""Sent if a recipe says `api_key_env: null`. The client insists on a key, and must not take one
from the environment."""

VARIABLE = re.compile(r"[A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+")
"""Names of environment variables. Narrow: a key that is here by mistake is no name, so no error
repeats it."""

REFUSES_FIELD = re.compile(
    r"support|unknown|unrecogni[sz]ed|unexpected|permitted|allowed|extra|both|invalid|deprecated"
)
"""Words of a message that refuses a field, in lower case."""

QUOTED = re.compile(r"[`'\"](\w+)[`'\"]")
LOOPBACK = ("localhost", "127.0.0.1", "::1")


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

    model_config = ConfigDict(frozen=True, extra="forbid")
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
    from openai import APIConnectionError, NotFoundError

    own = settings.owner
    server = f"{own.section}.base_url {url}" if settings.base_url else f"OpenAI ({OPENAI_URL})"
    if isinstance(error, APIConnectionError):
        if may_be_gone or not nobody_there(error):
            return None  # the server was there: this one reply broke off or took too long
        return f"{server} cannot be reached. Start the server or correct the address"
    if (status := getattr(error, "status_code", 0)) in range(300, 400):
        return (
            f"{server} sends requests on to another address (status {status}), which is not "
            f"followed. Write the address that answers in {own.section}.base_url"
        )
    if is_key_refused(error):
        named = "a request without a key"
        if settings.api_key_env:
            named = f"the key in {settings.api_key_env}"
        return (
            f"{server} does not accept {named}. Set {own.section}.api_key_env to the variable "
            "that holds the right key"
        )
    if (path := unknown_path(error)) is not None:
        return (
            f"{server} has no plain completions: it answers {status} at {path}. Texts that are "
            f"rendered here need them: serve the model with vLLM or SGLang, or correct the path"
        )
    if isinstance(error, NotFoundError) or error.code == "model_not_found":
        return (
            f"{server} does not know the model {model!r}. Correct {own.section}.model, or the "
            f"path in {own.section}.base_url"
        )
    if error.code == "insufficient_quota":
        return f"{server} says that the account has no quota left{own.no_quota}"
    # some servers name max_tokens also if only this item is too long for the model
    if answered and error.code not in UNSUPPORTED:
        return None
    field = refused_field(error, settings)
    return field and f"{server} refuses {field} for {model!r}. {known_fixes(settings)[field]}"


def refused_field(error: APIError, settings: ServerSettings) -> str | None:
    """The request field from the recipe that a server refuses; None if it refuses none of them."""
    known = known_fixes(settings)
    return next((name for name in refused_fields(error) if name in known), None)


def known_fixes(settings: ServerSettings) -> dict[str, str]:
    """{request field from the recipe: what to change if a server refuses it}."""
    section = settings.owner.section
    extra: Mapping[str, object] = getattr(settings, "extra_body", {})
    removed = dict.fromkeys(extra, f"Remove it from {section}.extra_body")
    return {**settings.owner.fixes, **removed}


def refused_fields(error: APIError) -> Iterator[str]:
    """The request fields that an error with status 400 or 422 may be about, the surest first."""
    if getattr(error, "status_code", None) not in (400, 422):
        return
    if isinstance(error.param, str):
        yield error.param
    for row in fastapi_rows(error.body):
        yield from map(str, row["loc"][1:2])  # ["body", "seed"]
    words = " ".join(said_words(error.body))
    if not error.param and REFUSES_FIELD.search(words.lower()):
        yield from QUOTED.findall(words)


def is_key_refused(error: APIError) -> bool:
    """Whether the server refuses the key. A 403 says so in words, or it is about the item."""
    from openai import AuthenticationError, PermissionDeniedError

    if isinstance(error, PermissionDeniedError):
        return KEY_WORDS.search(" ".join(said_words(error.body))) is not None
    return isinstance(error, AuthenticationError)


def proxy_note(url: str) -> str:
    """A sentence if a proxy of the environment stands before a server on this machine, else ""."""
    host, scheme = urlsplit(url).hostname or "", urlsplit(url).scheme
    proxies = urllib.request.getproxies()
    named = next((name for name in (scheme, "all") if proxies.get(name)), None)
    if host not in LOOPBACK or named is None or urllib.request.proxy_bypass(host):
        return ""
    return (
        f". {named.upper()}_PROXY is set, so this request went to that proxy and not to {host}. "
        f"Set NO_PROXY={host} to ask the server itself"
    )


SHORTEST_SECRET = 16
"""Characters from which on a key is taken out of responses."""


def nobody_there(error: BaseException) -> bool:
    """Whether no connection was made at all."""
    return type(error.__cause__).__name__ in ("ConnectError", "ConnectTimeout")


def shown(what: str, error: Exception, key: SecretStr) -> str:
    """`what` with the server's message: on one line, shortened, without the key."""
    cause = f": {error.__cause__}" if error.__cause__ else ""
    detail = fastapi_detail(getattr(error, "body", None))
    message = " ".join(f"{error}{detail and f' {detail}'}{cause}".split())
    return f"{what} ({without_key(message, key)[:SHOWN]})"


def without_key(text: str, key: SecretStr) -> str:
    """A server's text with [key] if it repeats the key."""
    return text if key is NO_KEY else text.replace(key.get_secret_value(), "[key]")


def text_without_key(text: str, key: SecretStr) -> str:
    """A response without the key: it goes into files and reports.

    A short key (EMPTY) may be a word of the response, and is left in.
    """
    return without_key(text, key) if len(key.get_secret_value()) >= SHORTEST_SECRET else text


def fastapi_detail(body: object) -> str:
    """The "detail" of a FastAPI error, without what was sent. The client leaves it out of its
    message."""
    detail = body.get("detail") if isinstance(body, dict) else None
    if isinstance(detail, list):  # each entry also has the faulty `input`: prompts and responses
        rows = fastapi_rows(body)
        return "; ".join(f"{'.'.join(map(str, row['loc']))}: {row.get('msg', '')}" for row in rows)
    return detail if isinstance(detail, str) else ""


# Any: rows of a server's JSON
def fastapi_rows(body: object) -> list[dict[str, Any]]:
    """The rows of a FastAPI error that say where the fault is. Mistral puts them in `message`."""
    detail = body.get("detail") if isinstance(body, dict) else None
    if isinstance(body, dict) and isinstance(body.get("message"), dict):
        detail = body["message"].get("detail")
    if not isinstance(detail, list):
        return []
    return [row for row in detail if isinstance(row, dict) and isinstance(row.get("loc"), list)]
