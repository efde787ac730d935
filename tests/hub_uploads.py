"""The writing side of a hub on loopback: repositories are made, files go up by LFS or in a commit.

    with serve_uploads({"me"}) as hub:
        ...                                   # HF_ENDPOINT=hub.address, HF_TOKEN=GRANTED
    hub.files["me/model"]["README.md"]

It speaks what huggingface_hub speaks without Xet: create, preupload, LFS batch, PUT, commit. As in
`hub_server`, an error echoes what was sent, which no error of ours may pass on.
"""

import base64
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple
from urllib.parse import unquote

from hub_server import GRANTED, SHA
from loopback import Loopback, Replies


class UploadHub(NamedTuple):
    """A running hub: what it holds, how the files came, and what it was asked.

    `files` is {repository: {path: content}}; `branches` is {repository: branches written to}.
    """

    address: str
    files: dict[str, dict[str, bytes]]
    branches: dict[str, set[str]]
    asked: list[str]


class Handler(Replies):
    """Answers the requests of huggingface_hub.HfApi.upload_folder."""

    owners: set[str]
    failing: str
    hub: UploadHub
    stored: dict[str, bytes]

    def do_GET(self) -> None:
        self.answer_for(b"")

    def do_POST(self) -> None:
        self.answer_for(self.body())

    def do_PUT(self) -> None:
        content = self.body()
        self.stored[self.path.rpartition("/")[2]] = content
        self.reply(200, {})

    def body(self) -> bytes:
        """What was sent, in one piece or in chunks."""
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def answer_for(self, body: bytes) -> None:
        """Finds what is wanted."""
        self.hub.asked.append(f"{self.command} {self.path}")
        path = unquote(self.path.partition("?")[0])
        if self.headers.get("Authorization") != f"Bearer {GRANTED}":
            return self.refuse(401)
        if self.failing and self.failing in path:
            return self.refuse(507)
        if path == "/api/repos/create":
            return self.create(json.loads(body))
        if path == "/api/validate-yaml":
            return self.reply(200, {"errors": [], "warnings": []})
        if path.endswith(".git/info/lfs/objects/batch"):
            return self.lfs(json.loads(body))
        owner, name, verb, *rest = [*path.removeprefix("/api/models/").split("/"), "", "", ""]
        repo = f"{owner}/{name}"
        if repo not in self.hub.files:
            return self.refuse(404)
        if verb == "branch":
            self.hub.branches[repo].add(rest[0])
            return self.reply(200, {})
        if verb == "preupload":
            return self.reply(200, {"files": [mode(file) for file in json.loads(body)["files"]]})
        if verb == "commit":
            return self.commit(repo, rest[0], body)
        return self.reply(200, {"id": repo, "sha": SHA, "siblings": [], "tags": []})

    def create(self, asked: dict[str, Any]) -> None:
        """A repository; 403 for the name of somebody else, 409 if it is there."""
        owner, repo = asked.get("organization") or "me", asked["name"]
        if owner not in self.owners:
            return self.refuse(403)
        known = f"{owner}/{repo}" in self.hub.files
        self.hub.files.setdefault(f"{owner}/{repo}", {})
        self.hub.branches.setdefault(f"{owner}/{repo}", set())
        return self.reply(409 if known else 200, {"url": f"{self.hub.address}/{owner}/{repo}"})

    def lfs(self, asked: dict[str, Any]) -> None:
        """Where the content of each object goes."""
        objects = [
            {
                "oid": found["oid"],
                "size": found["size"],
                "actions": {"upload": {"href": f"{self.hub.address}/upload/{found['oid']}"}},
            }
            for found in asked["objects"]
        ]
        self.reply(200, {"transfer": "basic", "objects": objects})

    def commit(self, repo: str, branch: str, body: bytes) -> None:
        """Puts the files of a commit into the repository."""
        self.hub.branches[repo].add(branch)
        for line in body.decode().splitlines():
            row = json.loads(line)
            value = row["value"]
            if row["key"] == "file":
                self.hub.files[repo][value["path"]] = base64.b64decode(value["content"])
            if row["key"] == "lfsFile":
                self.hub.files[repo][value["path"]] = self.stored[value["oid"]]
        url = f"{self.hub.address}/{repo}/commit/{SHA}"
        self.reply(200, {"success": True, "commitOid": SHA, "commitUrl": url, "hookOutput": ""})

    def refuse(self, code: int) -> None:
        """An error that echoes the token."""
        told = str(self.headers.get("Authorization"))
        self.reply(code, {"error": told}, {"X-Error-Message": told})

    def reply(self, code: int, value: Any, headers: dict[str, str] | None = None) -> None:
        """Sends JSON."""
        content = json.dumps(value).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        for key, text in {**(headers or {}), "Content-Length": str(len(content))}.items():
            self.send_header(key, text)
        self.end_headers()
        self.wfile.write(content)


def mode(file: dict[str, Any]) -> dict[str, Any]:
    """How a file is to come: weights by LFS, others in the commit."""
    big = file["path"].endswith(".safetensors")
    return {"path": file["path"], "uploadMode": "lfs" if big else "regular", "shouldIgnore": False}


@contextmanager
def serve_uploads(owners: set[str], *, failing: str = "") -> Iterator[UploadHub]:
    """A hub where GRANTED may write repositories of `owners`; paths with `failing` give 507.

    A client tries again after 500 and waits 23 seconds in all, and does not after 507.
    """
    server = Loopback(Handler)
    hub = UploadHub(f"http://127.0.0.1:{server.port}", {}, {}, [])
    values = {"owners": owners, "failing": failing, "hub": hub, "stored": {}}
    server.RequestHandlerClass = type("Handler", (Handler,), values)
    server.start()
    try:
        yield hub
    finally:
        server.stop()
