"""A server on loopback that speaks the OpenAI protocol and answers as a script says, faults
included.

    with serving(lambda request: says("Verdict: none")) as server:
        client = OpenAI(base_url=server.url, api_key="any")
    server.requests[0].text     # the last user message that arrived

A script is a function of the request, so that a test can answer by content or by number
(`in_turn`). Answered are /v1/chat/completions, /v1/completions (both without streaming; `n`
choices) and /v1/models.
"""

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

from loopback import Loopback, Replies


class Request(NamedTuple):
    """What arrived: number (from 0, in the order of arrival), method, path, headers in lower case,
    JSON body ({} without)."""

    number: int
    method: str
    path: str
    headers: Mapping[str, str]
    body: dict[str, Any]

    @property
    def text(self) -> str:
        """The last user message, or the prompt of a plain completion."""
        turns = [m["content"] for m in self.body.get("messages", []) if m["role"] == "user"]
        return str(turns[-1] if turns else self.body.get("prompt", ""))


class Answer(NamedTuple):
    """What is sent back. `payload` is the whole body; without it, a body is made from `text` and
    `finish_reason`."""

    text: str | None = ""
    finish_reason: str | None = "stop"
    status: int = 200
    headers: Mapping[str, str] = {}
    payload: bytes | None = None
    broken_off: bool = False
    """The connection closes after half of the announced body."""
    delay_seconds: float = 0.0
    drip_seconds: float = 0.0
    """The wait after each byte of the body."""


Script = Callable[[Request], Answer]


def says(text: str | None, finish_reason: str | None = "stop") -> Answer:
    """An ordinary reply."""
    return Answer(text, finish_reason)


def fails(
    status: int, message: str, *, code: str | None = None, param: str | None = None, **headers: str
) -> Answer:
    """An error as OpenAI words it. Headers are keywords: Retry_After="0.01"."""
    error = {"message": message, "type": "error", "param": param, "code": code}
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Answer(status=status, headers=named, payload=json.dumps({"error": error}).encode())


def too_many(retry_after: str = "0.01") -> Answer:
    """429 with the wait (in seconds) that the client is asked for."""
    return fails(429, "Rate limit reached", code="rate_limit_exceeded", Retry_After=retry_after)


def out_of_order(retry_after: str = "0.01") -> Answer:
    """500, with a short wait so that tests do not sleep."""
    return fails(500, "The server had an error", Retry_After=retry_after)


def raw(payload: bytes) -> Answer:
    """200 with any body: malformed JSON, something that is no completion."""
    return Answer(payload=payload)


def broken_off(text: str = "Verdict: none") -> Answer:
    """A reply whose connection closes in the middle of the body."""
    return Answer(text, broken_off=True)


def slow(text: str, seconds: float) -> Answer:
    """A reply after a while."""
    return Answer(text, delay_seconds=seconds)


def in_turn(*answers: Answer) -> Script:
    """The answers in the order of arrival; the last one stays."""
    return lambda request: answers[min(request.number, len(answers) - 1)]


class Server:
    """A running server: its `url` (up to /v1), the `requests` so far, and how many were in work at
    once at most."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.requests: list[Request] = []
        self.most_at_once = 0
        self._at_once = 0
        self._lock = threading.Lock()
        self._http = Loopback(self._handler())
        self.url = f"http://127.0.0.1:{self._http.port}/v1"

    def start(self) -> None:
        """Serves in a thread until `stop`."""
        self._http.start()

    def stop(self) -> None:
        """Closes the port; requests in work end with their threads."""
        self._http.stop()

    def answer(
        self, method: str, path: str, headers: Mapping[str, str], body: dict[str, Any]
    ) -> tuple[Answer, bytes]:
        """Records the request and asks the script."""
        with self._lock:
            request = Request(len(self.requests), method, path, headers, body)
            self.requests.append(request)
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            answer = self.listed() if path == "/v1/models" else self.script(request)
            time.sleep(answer.delay_seconds)
            return answer, answer.payload if answer.payload is not None else completion(
                request, answer
            )
        finally:
            with self._lock:
                self._at_once -= 1

    def listed(self) -> Answer:
        """What /v1/models says."""
        return models({})

    def _handler(self) -> type[Replies]:
        server = self

        class Handler(Replies):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self.reply("GET", {})

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                self.reply("POST", json.loads(body))

            def reply(self, method: str, body: dict[str, Any]) -> None:
                headers = {name.lower(): value for name, value in self.headers.items()}
                answer, payload = server.answer(method, self.path, headers, body)
                try:
                    self.send(answer, payload)
                except OSError:  # the client gave up, as it should when it is made to wait
                    self.close_connection = True

            def send(self, answer: Answer, payload: bytes) -> None:
                self.send_response(answer.status)
                for name, value in {"Content-Type": "application/json", **answer.headers}.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(payload)))
                self.end_headers()
                if answer.drip_seconds:
                    self.drip(payload, answer.drip_seconds)
                else:
                    self.wfile.write(payload[: len(payload) // 2] if answer.broken_off else payload)
                self.close_connection = self.close_connection or answer.broken_off

            def drip(self, payload: bytes, seconds: float) -> None:
                for byte in payload:
                    self.wfile.write(bytes([byte]))
                    self.wfile.flush()
                    time.sleep(seconds)

        return Handler


@contextmanager
def serving(script: Script | None = None) -> Iterator[Server]:
    """A server for the length of a `with`; without a script it repeats the last user message."""
    server = Server(script or (lambda request: says(request.text)))
    server.start()
    try:
        yield server
    finally:
        server.stop()


def completion(request: Request, answer: Answer) -> bytes:
    """The body of a (chat) completion with `n` equal choices."""
    chat = request.path.endswith("/chat/completions")
    said: dict[str, Any] = (
        {"message": {"role": "assistant", "content": answer.text}}
        if chat
        else {"text": answer.text}
    )
    choices = [
        {"index": number, "finish_reason": answer.finish_reason, "logprobs": None, **said}
        for number in range(request.body.get("n") or 1)
    ]
    usage = {"prompt_tokens": len(request.text), "completion_tokens": len(answer.text or "")}
    body = {
        "id": f"cmpl-{request.number}",
        "object": "chat.completion" if chat else "text_completion",
        "created": 0,
        "model": request.body.get("model"),
        "choices": choices,
        "usage": {**usage, "total_tokens": sum(usage.values())},
    }
    return json.dumps(body).encode()


def models(body: dict[str, Any]) -> Answer:
    """The list of models: one, called `judge`."""
    row = {"id": "judge", "object": "model", "created": 0, "owned_by": "tests"}
    return raw(json.dumps({"object": "list", "data": [row]}).encode())
