"""The HTTP server under all servers of the tests: threads, on a free port of loopback.

    http = Loopback(Handler)           # class Handler(Replies)
    http.start()
    ... http.port ...
    http.stop()

Two settings of the standard library cost seconds of waiting. A queue of 5 connections drops the rest
when 32 clients connect at once, and a dropped client tries again after 1, 3, 7 and 15 seconds. And a
body behind its headers waits 40 milliseconds, until the other side has confirmed the headers.
"""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Replies(BaseHTTPRequestHandler):
    """A handler that sends a body without a wait, and says nothing on the terminal."""

    disable_nagle_algorithm = True

    def log_message(self, *_: Any) -> None:
        """Silence."""


class Loopback(ThreadingHTTPServer):
    """A server whose connections are never dropped. Its `port` is open once it is made."""

    request_queue_size = 1024

    def __init__(self, handler: type[Replies]) -> None:
        super().__init__(("127.0.0.1", 0), handler)
        self.port = int(self.server_address[1])

    def start(self) -> None:
        """Serves in a thread until `stop`."""
        loop = {"poll_interval": 0.01}
        threading.Thread(target=self.serve_forever, kwargs=loop, daemon=True).start()

    def stop(self) -> None:
        """Closes the port; requests in work end with their threads."""
        self.shutdown()
        self.server_close()
