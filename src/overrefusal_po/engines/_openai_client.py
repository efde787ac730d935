"""The client of a server: no redirects, a limit on a reply's bytes, and a limit on a whole try.

Imports openai when it is loaded, so `_openai_setup.make_client` imports it when a client is needed.
"""

from __future__ import annotations

import asyncio
import importlib
import json
from typing import Any

from openai import AsyncOpenAI, DefaultAsyncHttpxClient, Timeout
from pydantic import SecretStr

from overrefusal_po.engines._replies import TOO_LONG

CONNECT_SECONDS = 10.0


class BoundedClient(DefaultAsyncHttpxClient):
    """Reads at most `max_reply_bytes` of a reply, within `try_seconds`.

    The `timeout` of the base class limits the wait for each piece only. A server that sends one
    byte now and then would hold a request for ever.
    """

    def __init__(self, *, timeout: Timeout, try_seconds: float, max_reply_bytes: int) -> None:
        # a redirect could send prompts and key to another host, and turns a POST into a GET
        super().__init__(timeout=timeout, follow_redirects=False)
        self.try_seconds = try_seconds
        self.max_reply_bytes = max_reply_bytes

    # Any: openai 2 uses httpx and openai 3 uses httpx2, and both call this
    async def send(  # type: ignore[override, unused-ignore]
        self,
        request: Any,
        *,
        stream: bool = False,
        auth: object = None,
        follow_redirects: object = None,
    ) -> Any:
        """The whole response. ReadTimeout of httpx if it takes too long."""
        try:
            async with asyncio.timeout(self.try_seconds):
                response = await super().send(request, stream=True, follow_redirects=False)
                try:
                    return await self.read_whole(response)
                finally:
                    await response.aclose()
        except TimeoutError:
            # the openai client knows the exceptions of its own httpx only
            httpx = importlib.import_module(type(request).__module__.partition(".")[0])
            message = f"no whole reply within {self.try_seconds:g} seconds"
            raise httpx.ReadTimeout(message, request=request) from None

    async def read_whole(self, response: Any) -> Any:
        """The response with its body, unpacked; with an error as its body if that is too long."""
        content = bytearray()
        async for piece in response.aiter_bytes():
            content += piece
            if len(content) > self.max_reply_bytes:
                # the openai client would send the request again after an exception
                content = bytearray(too_long_body(self.max_reply_bytes))
                break
        unpacked = ("content-encoding", "content-length", "transfer-encoding")
        headers = [pair for pair in response.headers.multi_items() if pair[0] not in unpacked]
        return type(response)(
            response.status_code,
            headers=headers,
            content=bytes(content),
            request=response.request,
            extensions=response.extensions,
        )


def too_long_body(limit: int) -> bytes:
    """The body that stands for a reply over the limit."""
    message = f"the reply has more than {limit} bytes; raise max_reply_bytes to read it"
    return json.dumps({"error": {"code": TOO_LONG, "message": message}}).encode()


def bounded_client(
    url: str, key: SecretStr, *, timeout_seconds: float, max_retries: int, max_reply_bytes: int
) -> AsyncOpenAI:
    """An asynchronous client. The address is explicit, so no environment variable chooses it."""
    timeout = Timeout(timeout_seconds, connect=min(CONNECT_SECONDS, timeout_seconds))
    http = BoundedClient(
        timeout=timeout, try_seconds=timeout_seconds, max_reply_bytes=max_reply_bytes
    )
    return AsyncOpenAI(
        api_key=key.get_secret_value(),
        base_url=url,
        timeout=timeout,
        max_retries=max_retries,
        http_client=http,
    )
