"""A server on loopback that speaks as much of wandb's protocol as `wandb sweep`, `wandb agent` and
a run need.

    with serving([{"trainer.beta": 0.1}, {"trainer.beta": 0.3}]) as server:
        subprocess.run(["wandb", "agent", ...], env={**os.environ, "WANDB_BASE_URL": server.url, ...})
    server.runs["trial0"].history

The real thing is GraphQL for names and states, a JSON "file stream" for a run's history and
summary, and PUT for files (tables, pictures, metadata). Here a query is told by the field it asks
for. An agent gets the trials one after another, and a stop for a run that `stop` says has shown
enough, as early termination would.
"""

import contextlib
import gzip
import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

from loopback import Loopback, Replies

ENTITY, PROJECT, SWEEP = "someone", "overrefusal-po", "sweep123"
OWNER = {"id": "p", "name": PROJECT, "entity": {"id": "e", "name": ENTITY}}


@dataclass
class Run:
    """What arrived of one run: config, history rows in order, the last summary, files by path, exit
    code when it ended."""

    sweep: str | None = None
    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    exit_code: int | None = None

    def values(self, key: str) -> list[Any]:
        """Every value of a history key, in the order of arrival."""
        return [row[key] for row in self.history if key in row]


class Server:
    """A running server: its `url`, the `sweep` that was made, the `runs` by id, and which were told
    to stop."""

    def __init__(self, trials: Sequence[Mapping[str, Any]], stop: Callable[[Run], bool]) -> None:
        self.trials = list(trials)
        self.stop = stop
        self.sweep: str = ""
        self.runs: dict[str, Run] = {}
        self.started = 0
        self.stopped: list[str] = []
        self.unknown: list[str] = []
        self.keys: set[str] = set()
        self.lock = threading.Lock()
        self.http = Loopback(handler_for(self))
        self.url = f"http://127.0.0.1:{self.http.port}"

    def run(self, name: str) -> Run:
        """The run of that id, made when it is first heard of."""
        return self.runs.setdefault(name, Run())

    def graphql(self, query: str, given: dict[str, Any]) -> dict[str, Any]:
        """The `data` of an answer: that of the first of our fields that the query asks for."""
        for name in FIELDS:
            if f"{name}(" in query or f"{name} {{" in query:
                found: dict[str, Any] = getattr(self, f"on_{name}")(given)
                return found
        self.unknown.append(query)
        return {}

    def on_viewer(self, given: dict[str, Any]) -> dict[str, Any]:
        """Whose key it is."""
        user = {
            "id": "u",
            "entity": ENTITY,
            "username": ENTITY,
            "email": "",
            "admin": False,
            "flags": "{}",
        }
        return {"viewer": {**user, "teams": {"edges": []}, "apiKeys": {"edges": []}}}

    def on_serverInfo(self, given: dict[str, Any]) -> dict[str, Any]:
        """A server without optional features."""
        return {
            "serverInfo": {"features": [], "cliVersionInfo": None, "latestLocalVersionInfo": None}
        }

    def on_organization(self, given: dict[str, Any]) -> dict[str, Any]:
        """The entity belongs to none."""
        return {"entity": {"organization": None}}

    def on_upsertSweep(self, given: dict[str, Any]) -> dict[str, Any]:
        """`wandb sweep` hands in the file."""
        self.sweep = given["config"]
        return {
            "upsertSweep": {
                "sweep": {"name": SWEEP, "project": OWNER},
                "configValidationWarnings": [],
            }
        }

    def on_sweep(self, given: dict[str, Any]) -> dict[str, Any]:
        """`wandb agent` asks for the file."""
        return {
            "project": {
                "sweep": {"id": SWEEP, "name": SWEEP, "config": self.sweep, "runs": {"edges": []}}
            }
        }

    def on_createAgent(self, given: dict[str, Any]) -> dict[str, Any]:
        """An agent reports for duty."""
        return {"createAgent": {"agent": {"id": "agent1"}}}

    def on_agentHeartbeat(self, given: dict[str, Any]) -> dict[str, Any]:
        """An idle agent gets the next trial, then the word to leave; a run that has shown enough is
        stopped."""
        running = json.loads(given["runState"])
        commands: list[dict[str, Any]] = []
        for name in running:
            if self.stop(self.run(name)):
                self.stopped.append(name)
                commands.append({"type": "stop", "run_id": name})
        if not running and self.started < len(self.trials):
            values = {key: {"value": value} for key, value in self.trials[self.started].items()}
            program = "recipes/dpo.yaml"
            commands.append(
                {
                    "type": "run",
                    "run_id": f"trial{self.started}",
                    "args": values,
                    "program": program,
                }
            )
            self.started += 1
        elif not running:
            commands.append({"type": "exit"})
        return {"agentHeartbeat": {"agent": {"id": "agent1"}, "commands": json.dumps(commands)}}

    def on_upsertBucket(self, given: dict[str, Any]) -> dict[str, Any]:
        """A run begins, or its config has changed."""
        name, run = given["name"], self.run(given["name"])
        run.sweep = given.get("sweep") or run.sweep
        run.config.update(json.loads(given.get("config") or "{}"))
        bucket = {"id": name, "name": name, "displayName": name, "description": "", "config": "{}"}
        bucket |= {"sweepName": run.sweep, "historyLineCount": 0, "project": OWNER}
        return {"upsertBucket": {"bucket": bucket, "inserted": True}}

    def on_createRunFiles(self, given: dict[str, Any]) -> dict[str, Any]:
        """Where a run's files may be PUT."""
        run, files = given["run"], given["files"]
        places = [{"name": name, "uploadUrl": f"{self.url}/put/{run}/{name}"} for name in files]
        return {"createRunFiles": {"runID": run, "uploadHeaders": [], "files": places}}

    def on_createArtifact(self, given: dict[str, Any]) -> dict[str, Any]:
        """Tables are artifacts too: this one is said to be here already, so that only the run's own
        file is sent."""
        return {
            "createArtifact": {
                "artifact": {"id": "a", "state": "COMMITTED", "artifactSequence": {"id": "s"}}
            }
        }

    def on_artifact(self, given: dict[str, Any]) -> dict[str, Any]:
        """No artifact has that name."""
        return {"project": {"artifact": None}}

    def stream(self, name: str, body: dict[str, Any]) -> None:
        """A piece of a run's file stream."""
        run = self.run(name)
        for file, piece in body.get("files", {}).items():
            rows = (
                [json.loads(line) for line in piece["content"]]
                if file.endswith((".json", ".jsonl"))
                else []
            )
            if file == "wandb-history.jsonl":
                run.history += rows
            elif file == "wandb-summary.json":
                run.summary = rows[-1]
        if body.get("complete"):
            run.exit_code = body["exitcode"]


FIELDS = (
    "viewer",
    "upsertSweep",
    "createAgent",
    "agentHeartbeat",
    "upsertBucket",
    "createRunFiles",
    "createArtifact",
    "artifact",
    "organization",
    "serverInfo",
    "sweep",
)
"""Told in this order: an upsertBucket also asks for its project's names."""


def handler_for(server: Server) -> type[Replies]:
    """Requests on their way to `server`, under its lock."""

    class Handler(Replies):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body, words = self.body(), self.path.strip("/").split("/")
            answer: dict[str, Any] = {}
            with server.lock:
                server.keys.add(self.headers.get("Authorization", ""))
                if self.path == "/graphql":
                    asked = json.loads(body)
                    answer = {"data": server.graphql(asked["query"], asked.get("variables") or {})}
                elif words[-1] == "file_stream":
                    server.stream(words[-2], json.loads(body))
            self.reply(json.dumps(answer).encode())

        def do_PUT(self) -> None:
            _, _, name, path = self.path.split("/", 3)
            body = self.body()
            with server.lock:
                server.run(name).files[unquote(path)] = body
            self.reply(b"")

        def do_GET(self) -> None:
            self.reply(b"{}")

        def body(self) -> bytes:
            found = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            return (
                gzip.decompress(found) if self.headers.get("Content-Encoding") == "gzip" else found
            )

        def reply(self, content: bytes) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    return Handler


@contextlib.contextmanager
def serving(
    trials: Sequence[Mapping[str, Any]] = (), stop: Callable[[Run], bool] = lambda run: False
) -> Iterator[Server]:
    """A server in a thread, for as long as the block runs."""
    server = Server(trials, stop)
    server.http.start()
    try:
        yield server
    finally:
        server.http.stop()
