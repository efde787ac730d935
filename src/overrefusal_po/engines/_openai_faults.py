"""An error of a server -> what is wrong with the set-up, in words, without the key.

    wrong_setup(error, settings, url, model=model, answered=False)
    # a sentence; None if only this request is at fault
    shown("no answer", error, key)

Used by the engine `openai` and the judge `llm`. Errors name the recipe's section through
`settings.owner`.
"""

from __future__ import annotations

import re
import urllib.request
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from pydantic import SecretStr

from overrefusal_po.engines._openai_setup import NO_KEY, OPENAI_URL, ServerSettings
from overrefusal_po.engines._replies import (
    KEY_WORDS,
    SHOWN,
    UNSUPPORTED,
    said_words,
    unknown_path,
)

if TYPE_CHECKING:
    from openai import APIError

REFUSES_FIELD = re.compile(
    r"support|unknown|unrecogni[sz]ed|unexpected|permitted|allowed|extra|both|invalid|deprecated"
    r"|must be"
)
"""Words of a message that refuses a field, in lower case."""

CLOSE = 40
"""Characters between a field's name and the word that refuses it."""

WORDS = ("model", "prompt")
"""Fields whose names errors also use as words."""

QUOTED = re.compile(r"[`'\"](\w+)[`'\"]")
LOOPBACK = ("localhost", "127.0.0.1", "::1")


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
    if error.code == "insufficient_quota" or status == 402:
        return f"{server} says that the account has no quota left{own.no_quota}"
    # some servers name max_tokens also if only this item is too long for the model
    if answered and error.code not in UNSUPPORTED:
        return None
    field = refused_field(error, settings)
    return field and f"{server} refuses {field} for {model!r}. {known_fixes(settings)[field]}"


def refused_field(error: APIError, settings: ServerSettings) -> str | None:
    """The request field from the recipe that a server refuses; None if it refuses none of them."""
    known = known_fixes(settings)
    sure = next((name for name in refused_fields(error) if name in known), None)
    return sure or next(bare_fields(error, [name for name in known if name not in WORDS]), None)


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
        # ["body", "seed"], ["seed"], ["body", "ChatCompletionRequest", "seed"]
        yield from map(str, row["loc"])
    words = " ".join(said_words(error.body))
    if not error.param and REFUSES_FIELD.search(words.lower()):
        yield from QUOTED.findall(words)


def bare_fields(error: APIError, known: Iterable[str]) -> Iterator[str]:
    """The known fields that an error with status 400 or 422 names without quotation marks, close
    to the word that refuses."""
    if getattr(error, "status_code", None) not in (400, 422) or error.param:
        return
    words = " ".join(said_words(error.body)).lower()
    for refused in REFUSES_FIELD.finditer(words):
        near = words[max(refused.start() - CLOSE, 0) : refused.end() + CLOSE]
        yield from (name for name in known if re.search(rf"(?<!\w){re.escape(name)}(?!\w)", near))


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
    body = getattr(error, "body", None)
    detail = fastapi_detail(body) or plain_words(body, str(error))
    message = " ".join(f"{error}{detail and f' {detail}'}{cause}".split())
    return f"{what} ({without_key(message, key)[:SHOWN]})"


def plain_words(body: object, message: str) -> str:
    """What an error says that is text, or lies in a list: the client leaves it out of its
    message."""
    said = next(said_words(body), "") if isinstance(body, str | list) else ""
    return "" if said in message or "<html" in said.lower() else said


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
