"""An adapter at one server: loaded under its name before the first prompt, unloaded at the end.

    place = AdapterAt(adapter, url, client, folder)
    loads = await place.ready()          # loads it, unless it is loaded
    place.named(body)                    # the request's fields, for the adapter
    place.forgot(error, loads)           # True: the server was restarted; `ready` loads it again
    await place.unload()

Two protocols are known:

- vLLM: POST /v1/load_lora_adapter {lora_name, lora_path}, if it was started with --enable-lora and
  VLLM_ALLOW_RUNTIME_LORA_UPDATING=True. The name is then a model's: a request without the adapter
  gets 404.
- SGLang: POST /load_lora_adapter, the same fields, without /v1. A request names it behind a colon
  (`base:adapter`), and an unknown name is 400. (A model's name alone is not looked at, so without
  the colon the base would answer.)

A name stands for a content (`_adapter_folder`). So an adapter that is loaded already is the right
one: another run uses it too, or left it there when it was killed.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from pydantic import SecretStr

from overrefusal_po.engines._adapter_folder import ServedAdapter
from overrefusal_po.engines._adapter_words import (
    ABOUT_ADAPTERS,
    LOAD,
    advice,
    is_loaded_already,
    is_no_route,
    own_words,
    reply_words,
    takes_none,
    unlike,
    weaker,
)
from overrefusal_po.engines._openai_faults import proxy_note, shown
from overrefusal_po.engines._replies import KEY_WORDS
from overrefusal_po.model.bases import is_base

if TYPE_CHECKING:
    from openai import APIError, APIStatusError, AsyncOpenAI

logger = logging.getLogger(__name__)

UNLOAD = "unload_lora_adapter"
UNLOAD_SECONDS = 30.0
"""The longest wait for a server at the end."""

FORGOTTEN_MOST = 3
"""So often in a row, without an answer between them, a server may lose the adapter. A restart is
once; another run that ends may unload it too."""

PASSES = (401, 408, 409, 429, 502, 503, 504)
"""Statuses that are not about the adapter: of keys, gateways and busy servers."""


class Style(NamedTuple):
    """How a kind of server takes adapters."""

    root: bool
    """Whether the addresses stand at the server's root and not under /v1."""
    behind_base: bool
    """Whether a request names the adapter behind its model, `base:adapter`."""
    knows_root: bool
    """Whether it scales an adapter with `use_rslora` as peft does."""


VLLM = Style(root=False, behind_base=False, knows_root=True)
SGLANG = Style(root=True, behind_base=True, knows_root=False)
"""SGLang leaves `use_rslora` out without a word (sgl-project/sglang, issue 40835)."""


class AdapterAt:
    """An adapter at one server.

    Args:
        adapter: which one.
        url: the server's address, up to /v1.
        client: asks that server.
        folder: the adapter's folder as the server sees it.
        key: is taken out of what the server says.
        compared: addresses whose model was compared with the adapter's base already.
    """

    def __init__(
        self,
        adapter: ServedAdapter,
        url: str,
        client: AsyncOpenAI,
        folder: str,
        *,
        key: SecretStr,
        compared: set[str],
    ) -> None:
        self.adapter, self.url, self.client, self.folder = adapter, url, client, folder
        self.key, self.compared = key, compared
        self.style: Style | None = None
        self.loaded = False
        self.loads = 0
        """How often it was loaded in this session."""
        self.forgotten = 0
        """How often the server lost it since its last answer."""
        self.asked: Style | None = None
        """How the server was last asked to load it, whatever it answered; None: never."""
        self.failed: APIError | None = None
        """Why the last try to load it failed, if the reason may pass."""
        self.lock = asyncio.Lock()

    async def ready(self) -> int:
        """Loads the adapter unless it is loaded; the number of loads so far.

        Requests that come while one of them loads it share what comes of that. Else each would wait
        in turn for a server that does not answer.

        Raises ValueError if the server takes none, and APIError if the server is not there.
        """
        failed = self.failed
        async with self.lock:
            if not self.loaded and self.failed is not None and self.failed is not failed:
                raise self.failed
            if not self.loaded:
                await asyncio.to_thread(self.adapter.check_unchanged)
                await self.load_noting()
                self.loaded = True
                self.loads += 1
                await self.warn_of_base()
            return self.loads

    async def load_noting(self) -> None:
        """`load`, and a failure that may pass is noted."""
        from openai import APIError

        try:
            await self.load()
        except APIError as error:
            self.failed = error
            raise

    async def load(self) -> None:
        """Has the server load the adapter, by the first protocol that it knows."""
        from openai import APIStatusError

        for style in (VLLM, SGLANG) if self.style is None else (self.style,):
            self.asked = style
            try:
                await self.post(LOAD, style, {"lora_path": self.folder})
            except APIStatusError as error:
                if is_no_route(error):
                    continue
                if not is_loaded_already(error):
                    raise self.refusal(error) from None
            self.style = style
            if self.adapter.by_root and not style.knows_root:
                raise ValueError(weaker(self.url, self.adapter))
            return
        raise ValueError(takes_none(self.url, self.adapter, self.folder))

    def refusal(self, error: APIStatusError) -> Exception:
        """What to raise for a server's refusal to load: `error` itself if it may pass, or is of the
        key."""
        said = reply_words(error)
        of_key = error.status_code == 403 and KEY_WORDS.search(said)
        moved = error.status_code in range(300, 400)
        if error.status_code in PASSES or of_key or moved:
            return error
        what = f"{self.place} does not load {self.adapter.words}"
        words = own_words(what, error, self.key)
        return ValueError(f"{words}. {advice(said, self.adapter, self.folder)}")

    @property
    def place(self) -> str:
        """The server, for a sentence."""
        return f"engine.adapter: engine.base_url {self.url}{proxy_note(self.url)}"

    async def post(self, action: str, style: Style, more: Mapping[str, str]) -> None:
        """Asks the server to load or to unload; APIError if it does not."""
        body = {"lora_name": self.adapter.name, **more}
        await self.client.post(address(self.url, action, style), body=body, cast_to=str)

    def named(self, body: Mapping[str, object]) -> dict[str, object]:
        """The fields of a request, its model the adapter."""
        name = self.adapter.name
        if self.style is not None and self.style.behind_base:
            # what stands before the first colon is the base
            name = f"{str(body['model']).partition(':')[0]}:{name}"
        return {**body, "model": name}

    def answered(self) -> None:
        """Notes that the adapter answered."""
        self.forgotten = 0

    def forgot(self, error: APIError, loads: int) -> bool:
        """Whether the server has lost the adapter since it was loaded; then `ready` loads it again.

        `loads`: what `ready` said before the request. Requests that failed together count once.
        ValueError if it loses the adapter again and again.
        """
        if not self.is_unknown(error):
            return False
        if loads == self.loads and self.loaded:
            self.loaded = False
            self.forgotten += 1
            logger.warning("%s has lost the adapter %s", self.url, self.adapter.name)
        if self.forgotten > FORGOTTEN_MOST:
            raise ValueError(
                f"{self.place} loads {self.adapter.words} and then does not know it, "
                f"{self.forgotten} times in a row. If several servers stand behind that address, "
                "give the address of each in engine.base_url."
            )
        return True

    def is_unknown(self, error: APIError) -> bool:
        """Whether a request failed because the server does not know the adapter."""
        said = reply_words(error)
        status = getattr(error, "status_code", None)
        named = self.adapter.name in said and ABOUT_ADAPTERS.search(said) is not None
        return status == 404 or (status == 400 and named)

    async def unload(self) -> None:
        """Has the server unload the adapter if it was asked to load it. A server that does not is
        named in the log."""
        from openai import APIConnectionError, APIError, APIStatusError

        if self.asked is None:
            return
        try:
            async with asyncio.timeout(UNLOAD_SECONDS):
                await self.post(UNLOAD, self.asked, {})
        except APIStatusError as error:
            if error.status_code not in (400, 404):  # it was not there
                self.say_stays(own_words("it refuses", error, self.key))
        except APIConnectionError as error:
            if self.loads:
                self.say_stays(shown("it is not there", error, self.key))
        except (APIError, TimeoutError, ValueError):
            self.say_stays("it does not answer")

    def say_stays(self, why: str) -> None:
        """Names a server that may still hold the adapter."""
        logger.warning("%s may keep the adapter %s: %s", self.url, self.adapter.name, why)

    async def warn_of_base(self) -> None:
        """Warns once if the server's model is not the one that the adapter was trained on."""
        if self.url in self.compared:
            return
        self.compared.add(self.url)
        bases = await served_bases(self.client)
        if not is_base(self.adapter.base, bases):
            logger.warning("%s", unlike(self.adapter, self.url, bases))


MakeAdapter = Callable[[str, "AsyncOpenAI"], AdapterAt]
"""(address, client) -> the adapter at that server."""


async def load(places: Sequence[AdapterAt]) -> None:
    """Loads the adapter at each server before the first prompt. ValueError if one of them takes
    none; a server that is not there is asked again before its first request."""
    from openai import APIError

    for found in await asyncio.gather(*(p.ready() for p in places), return_exceptions=True):
        if isinstance(found, BaseException) and not isinstance(found, APIError):
            raise found


async def unload(places: Sequence[AdapterAt]) -> None:
    """Unloads the adapter wherever it was loaded."""
    await asyncio.gather(*(place.unload() for place in places))


async def check_unchanged(places: Sequence[AdapterAt]) -> None:
    """Raises ValueError if the folder changed: a server may read it again at any time."""
    for place in places[:1]:
        await asyncio.to_thread(place.adapter.check_unchanged)


def address(url: str, action: str, style: Style) -> str:
    """Where a server takes an action on adapters; a path is one behind `url`."""
    root = url.rstrip("/").removesuffix("/v1")
    return f"{root}/{action}" if style.root else f"/{action}"


async def takes_adapters(url: str, client: AsyncOpenAI) -> bool | None:
    """Whether a server takes adapters while it runs; None if it cannot be asked. Loads nothing: it
    is asked to load without a name, which it refuses."""
    from openai import APIError, APIStatusError

    for style in (VLLM, SGLANG):
        try:
            await client.post(address(url, LOAD, style), body={}, cast_to=str)
        except APIStatusError as error:
            if is_no_route(error):
                continue
            return True if error.status_code in (400, 422) else None
        except APIError:
            return None
        return True
    return False


async def served_bases(client: AsyncOpenAI) -> list[str]:
    """Names and paths of the models that a server lists, without its adapters; empty if it lists
    none."""
    from openai import APIError

    try:
        listed = json.loads(await client.get("/models", cast_to=str))
        cards = [card for card in listed["data"] if isinstance(card, dict)]
    except (APIError, ValueError, LookupError, TypeError):
        return []
    found = [
        str(card[key])
        for card in cards
        if not card.get("parent")
        for key in ("id", "root")
        if card.get(key)
    ]
    return list(dict.fromkeys(found))
