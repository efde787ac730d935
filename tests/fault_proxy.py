"""A proxy on loopback in front of a server. It spoils some requests and replies, like bad networks
and full servers.

    with serving() as server, faulty(server.url, share(0.2)) as proxy:
        ... base_url=proxy.url ...
    proxy.requests, proxy.injected      # 500, Counter({"429": 21, "reset": 17, ...})

A fault is chosen by the number of the request alone, so that a test meets the same faults each
time.
"""

import http.client
import random
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

from loopback import Loopback, Replies

KINDS = ("429", "500", "html", "reset", "truncated", "malformed", "slow")
LONGEST_SECONDS = 20.0
"""How long a slow reply is held back; a client with a shorter timeout gives up."""

Faults = Callable[[int], str | None]


def share(part: float, kinds: tuple[str, ...] = KINDS[:-1], seed: int = 0) -> Faults:
    """Faults in `part` of the requests, each kind with the same probability."""

    def fault(number: int) -> str | None:
        draw = random.Random(f"{seed} {number}")
        return draw.choice(kinds) if draw.random() < part else None

    return fault


def at(**numbers: str) -> Faults:
    """Faults at given numbers: at(_0="429", _3="reset")."""
    return lambda number: numbers.get(f"_{number}")


class Proxy:
    """A running proxy: its `url`, the `requests` so far, and the faults that it `injected`, by
    kind."""

    def __init__(self, url: str, faults: Faults) -> None:
        self.upstream = urlsplit(url)
        self.faults = faults
        self.requests = 0
        self.injected: Counter[str] = Counter()
        self.lock = threading.Lock()
        self.stopping = threading.Event()
        self.http = Loopback(self._handler())
        self.url = f"http://127.0.0.1:{self.http.port}{self.upstream.path}"

    def next_fault(self) -> str | None:
        """Counts a request and says what becomes of it."""
        with self.lock:
            fault = self.faults(self.requests)
            self.requests += 1
            if fault is not None:
                self.injected[fault] += 1
        return fault

    def passed_on(self, method: str, path: str, body: bytes) -> tuple[int, bytes]:
        """What the server behind answers."""
        connection = http.client.HTTPConnection(
            str(self.upstream.hostname), self.upstream.port, timeout=60
        )
        try:
            connection.request(method, path, body, {"Content-Type": "application/json"})
            reply = connection.getresponse()
            return reply.status, reply.read()
        finally:
            connection.close()

    def _handler(self) -> type[Replies]:
        proxy = self

        class Handler(Replies):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                fault = proxy.next_fault()
                try:
                    self.spoil(fault, body)
                except OSError:  # the client gave up
                    self.close_connection = True

            def spoil(self, fault: str | None, body: bytes) -> None:
                if fault == "429":
                    return self.send(
                        429, b'{"error": {"message": "slow down"}}', retry_after="0.01"
                    )
                if fault == "500":
                    return self.send(500, b'{"error": {"message": "out of order"}}')
                if fault == "html":
                    return self.send(
                        502, b"<html><h1>502 Bad Gateway</h1></html>", kind="text/html"
                    )
                if fault == "slow":
                    proxy.stopping.wait(LONGEST_SECONDS)
                status, payload = proxy.passed_on("POST", self.path, body)
                if fault == "malformed":
                    status, payload = 200, payload[: len(payload) // 2]
                if fault in ("reset", "truncated"):
                    return self.break_off(payload, reset=fault == "reset")
                return self.send(status, payload)

            def send(
                self, status: int, payload: bytes, kind: str = "application/json", **headers: str
            ) -> None:
                self.send_response(status)
                self.send_header("Content-Type", kind)
                for name, value in headers.items():
                    self.send_header(name.replace("_", "-"), value)
                self.send_header("Content-Length", str(len(payload)))
                self.end_headers()
                self.wfile.write(payload)

            def break_off(self, payload: bytes, *, reset: bool) -> None:
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(payload)))
                self.end_headers()
                self.wfile.write(payload[: len(payload) // 2])
                self.close_connection = True
                if reset:  # closing with a linger of zero sends RST instead of FIN
                    self.connection.setsockopt(
                        socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
                    )
                    self.connection.close()

        return Handler


@contextmanager
def faulty(url: str, faults: Faults) -> Iterator[Proxy]:
    """A proxy before the server at `url` for the length of a `with`."""
    proxy = Proxy(url, faults)
    proxy.http.start()
    try:
        yield proxy
    finally:
        proxy.stopping.set()
        proxy.http.stop()
