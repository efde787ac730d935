"""loopback.py and conftest.py: tests do not wait for dropped connections, nor for the garbage
collector."""

import gc
import http.client
import socket
from contextlib import ExitStack

from loopback import Loopback, Replies


class Twice(Replies):
    """Answers every request with a body behind its headers."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "4")
        self.end_headers()
        self.wfile.write(b"body")


def test_as_many_clients_as_a_recipe_allows_connect_before_one_is_served() -> None:
    """The standard library's queue of 5 drops the seventh, which tries again a second later."""
    server = Loopback(Twice)
    with ExitStack() as clients:
        clients.callback(server.server_close)
        for _ in range(64):
            client = clients.enter_context(socket.socket())
            client.settimeout(0.9)
            client.connect(("127.0.0.1", server.port))


def test_a_body_does_not_wait_until_its_headers_are_confirmed() -> None:
    seen: list[int] = []

    class Watched(Twice):
        def do_GET(self) -> None:
            seen.append(self.connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            super().do_GET()

    server = Loopback(Watched)
    server.start()
    try:
        client = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
        client.request("GET", "/")
        assert client.getresponse().read() == b"body"
        client.close()
    finally:
        server.stop()
    assert seen and seen[0] > 0


def test_a_server_that_stopped_is_gone() -> None:
    server = Loopback(Twice)
    server.start()
    server.stop()
    with socket.socket() as client:
        assert client.connect_ex(("127.0.0.1", server.port)) != 0


def test_the_collected_tests_are_out_of_garbage_collection() -> None:
    """What this test makes is still collected."""

    class Ring:
        def __init__(self) -> None:
            self.own = self

    assert gc.get_freeze_count() > 10_000
    Ring()
    assert gc.collect() >= 1
