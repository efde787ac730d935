"""A deterministic OpenAI-compatible server that costs almost nothing, so that a benchmark measures
the client.

    python benchmarks/stub_server.py [PORT]   # prints its address; ends when its input ends

The answer follows from the last message and the seed alone. HTTP is read by hand: no more of it
than the client sends.
"""

import asyncio
import hashlib
import json
import sys
import threading
from collections.abc import Callable

WORDS = (
    "open",
    "the",
    "terminal",
    "type",
    "kill",
    "and",
    "number",
    "of",
    "process",
    "then",
    "look",
    "again",
    "sorry",
    "no",
)


def answer(body: dict) -> str:
    """40 words drawn by what was asked; one in four begins like a refusal. A model called `judge`
    ends with a verdict."""
    asked = body["messages"][-1]["content"] if "messages" in body else body["prompt"]
    digest = hashlib.sha512(f"{asked} {body.get('seed')}".encode()).digest()
    text = " ".join(WORDS[byte % len(WORDS)] for byte in digest[:40])
    if body["model"] == "judge":
        return f"{text}\nVerdict: {'full' if digest[-1] < 64 else 'none'}"
    return f"I'm sorry, but I can't help with that. {text}" if digest[-1] < 64 else text


def reply(body: dict) -> bytes:
    """The whole HTTP response."""
    text = answer(body)
    chat = "messages" in body
    said = {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
    usage = {"prompt_tokens": 20, "completion_tokens": 40, "total_tokens": 60}
    payload = json.dumps(
        {
            "id": "x",
            "object": "chat.completion" if chat else "text_completion",
            "created": 0,
            "model": body["model"],
            "choices": [{"index": 0, "finish_reason": "stop", "logprobs": None, **said}],
            "usage": usage,
        }
    ).encode()
    return b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (
        len(payload),
        payload,
    )


class Connection(asyncio.Protocol):
    """One client's connection, kept open."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport, self.unread = transport, b""

    def data_received(self, data: bytes) -> None:
        self.unread += data
        while (end := self.unread.find(b"\r\n\r\n")) >= 0:
            length = int(self.unread[:end].lower().split(b"content-length:")[1].split(b"\r\n")[0])
            if len(self.unread) < end + 4 + length:
                return
            body = json.loads(self.unread[end + 4 : end + 4 + length])
            self.unread = self.unread[end + 4 + length :]
            self.transport.write(reply(body))


async def serve(ready: Callable[[str], None], stop: threading.Event, port: int = 0) -> None:
    """Serves until `stop`. Port 0: any that is free."""
    server = await asyncio.get_running_loop().create_server(Connection, "127.0.0.1", port)
    ready(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1")
    while not stop.is_set():
        await asyncio.sleep(0.2)


if __name__ == "__main__":
    end = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), end.set()), daemon=True).start()
    port = int(sys.argv[1]) if len(sys.argv) > 1 else 0
    asyncio.run(serve(lambda url: print(url, flush=True), end, port))
