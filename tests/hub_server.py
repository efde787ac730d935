"""A hub on loopback that speaks enough of the Hugging Face protocol for `datasets.load_dataset` to
list and download.

    files = {"README.md": card(...), "data/train-0.parquet": parquet(rows)}
    with serve({"walledai/XSTest": Repo(files)}) as hub:
        answers = ask_hub(hub.address, tmp_path, [{"name": "xstest"}])

As the real one it says 401 for a repository that does not exist (to who is not logged in), and for
a gated one 401 without a token, 403 with a token that was not let in. Asking is done in a process
of its own, since the hub's address is read when huggingface_hub is imported; all questions of a
test module share one such process.
"""

import csv
import hashlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote

from loopback import Loopback, Replies

SHA = "0123456789abcdef0123456789abcdef01234567"
GRANTED = "hf_thisTokenWasLetIn"


class Repo(NamedTuple):
    """A data set repository: path -> content. `gated`: only GRANTED may read it. `broken`: the hub
    cannot list it.

    `revisions`: commits beside the head; a repository that has some has no head, so that only who
    pins one is served.
    """

    files: Mapping[str, bytes]
    gated: bool = False
    broken: bool = False
    revisions: tuple[str, ...] = ()


class Hub(NamedTuple):
    """A running hub: its address, and what it was asked ("GET /path")."""

    address: str
    asked: list[str]


class Answer(NamedTuple):
    """What reading one source gave: its prompts (triples, pairs) as dictionaries, or the text of
    the ValueError."""

    prompts: list[dict[str, Any]]
    error: str | None


class Handler(Replies):
    """Answers the requests of huggingface_hub for the repositories of `serve`."""

    repos: Mapping[str, Repo]
    asked: list[str]

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        self.answer_for(body)

    def do_GET(self) -> None:
        self.answer_for("")

    def answer_for(self, body: str) -> None:
        """Finds the repository and what is wanted of it."""
        self.asked.append(f"{self.command} {self.path}")
        path = unquote(self.path.partition("?")[0]).removeprefix("/api").removeprefix("/datasets/")
        owner, name, verb, *rest = [*path.split("/"), "", "", ""]
        repo = self.repos.get(f"{owner}/{name}")
        if repo is None:
            return self.refuse(401, "RepoNotFound")
        known = repo.revisions or ("main", SHA)
        if verb in ("", "revision"):
            return self.reply(
                200,
                self.info(f"{owner}/{name}", repo, rest[0] if rest[0] in repo.revisions else SHA),
            )
        if repo.gated and self.headers.get("Authorization") != f"Bearer {GRANTED}":
            return self.refuse(403 if "Authorization" in self.headers else 401, "GatedRepo")
        if repo.broken and verb == "tree":
            return self.refuse(400, "Broken")
        if rest[0] not in known:
            return self.refuse(404, "RevisionNotFound")
        inside = "/".join(part for part in rest[1:] if part)
        if verb == "resolve":
            return self.send_file(repo, inside, rest[0] if rest[0] in repo.revisions else SHA)
        if verb == "tree":
            return self.reply(
                200, list(entries(repo, inside, deep="recursive=true" in self.path.lower()))
            )
        if verb == "paths-info":
            return self.reply(
                200, [entry for entry in entries(repo, "", deep=True) if entry["path"] in body]
            )
        return self.refuse(404, "EntryNotFound")

    def info(self, name: str, repo: Repo, sha: str) -> dict[str, Any]:
        """What the hub tells of a repository, also of a gated one."""
        return {
            "id": name,
            "sha": sha,
            "private": False,
            "gated": "auto" if repo.gated else False,
            "tags": [],
            "downloads": 0,
            "likes": 0,
            "disabled": False,
            "siblings": [{"rfilename": path} for path in repo.files],
            "lastModified": "2024-01-01T00:00:00.000Z",
        }

    def send_file(self, repo: Repo, path: str, sha: str) -> None:
        """A file's bytes, under the headers that huggingface_hub caches by."""
        if path not in repo.files:
            return self.refuse(404, "EntryNotFound")
        content = repo.files[path]
        return self.send(200, content, {"ETag": f'"{oid(content)}"', "X-Repo-Commit": sha})

    def refuse(self, code: int, error: str) -> None:
        """An error as the hub words it; it echoes what was sent, which no error of ours may pass
        on."""
        told = self.headers.get("Authorization", "nothing")
        self.send(
            code,
            b"{}",
            {"X-Error-Code": error, "X-Error-Message": f"{error}: {told}", "X-Repo-Commit": SHA},
        )

    def reply(self, code: int, value: Any) -> None:
        """Sends JSON."""
        self.send(code, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def send(self, code: int, body: bytes, headers: Mapping[str, str]) -> None:
        """Sends a reply; a HEAD request gets its headers only."""
        self.send_response(code)
        for key, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def oid(content: bytes) -> str:
    """40 hex digits that stand for a content."""
    return hashlib.sha1(content, usedforsecurity=False).hexdigest()


def entries(repo: Repo, folder: str, *, deep: bool) -> Iterator[dict[str, Any]]:
    """The files and folders under `folder` as the tree lists them."""
    folders = set()
    under = f"{folder}/" if folder else ""
    for path, content in repo.files.items():
        if not path.startswith(under):
            continue
        below = path.removeprefix(under).split("/")
        for depth in range(1, len(below)):
            folders.add(under + "/".join(below[:depth]))
        if deep or len(below) == 1:
            yield {"type": "file", "path": path, "oid": oid(content), "size": len(content)}
    for path in sorted(folders):
        if deep or "/" not in path.removeprefix(under):
            yield {"type": "directory", "path": path, "oid": oid(path.encode()), "size": 0}


@contextmanager
def serve(repos: Mapping[str, Repo]) -> Iterator[Hub]:
    """A hub with these repositories, on a free port."""
    asked: list[str] = []
    handler = type("Handler", (Handler,), {"repos": repos, "asked": asked})
    server = Loopback(handler)
    server.start()
    try:
        yield Hub(f"http://127.0.0.1:{server.port}", asked)
    finally:
        server.stop()


ASK = """
import json, sys
from overrefusal_po import prompts
answers = []
for reader, spec, split in json.load(sys.stdin):
    try:
        found = getattr(prompts, reader)(spec, split)
        answers.append({"prompts": [p.model_dump() for p in found], "error": None})
    except ValueError as error:
        answers.append({"prompts": [], "error": str(error)})
print(json.dumps(answers))
"""


def ask_hub(
    address: str,
    home: Path,
    specs: Sequence[Any],
    *,
    split: str | None = "test",
    **environment: str,
) -> tuple[list[Answer], str]:
    """(an answer for each source, all that was printed), read in one process whose hub is at
    `address`."""
    return ask_readers(
        address, home, [("read_source", spec, split) for spec in specs], **environment
    )


def ask_readers(
    address: str, home: Path, questions: Sequence[tuple[str, Any, str | None]], **environment: str
) -> tuple[list[Answer], str]:
    """As `ask_hub`, for (function of `plugins`, source, split)."""
    kept = {
        k: v for k, v in os.environ.items() if "proxy" not in k.lower() and not k.startswith("HF_")
    }
    hub = {"HF_ENDPOINT": address, "HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1"}
    done = subprocess.run(
        [sys.executable, "-c", ASK],
        input=json.dumps(list(questions)),
        capture_output=True,
        text=True,
        env={**kept, **hub, **environment},
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [Answer(**answer) for answer in json.loads(done.stdout)], done.stdout + done.stderr


def parquet(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Rows as a Parquet file."""
    import pyarrow as pa
    import pyarrow.parquet

    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pa.Table.from_pylist(list(rows)), buffer)
    return buffer.getvalue()


def jsonl(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Rows as JSON Lines."""
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def csv_file(rows: Sequence[Mapping[str, Any]], *, delimiter: str = ",") -> bytes:
    """Rows as CSV with a header."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue().encode()


def card(
    configs: Mapping[str, Mapping[str, str]], *, claims: Mapping[str, int] | None = None
) -> bytes:
    """A data set card that says which files make which split: {configuration: {split: pattern}}.

    `claims` is {split: number of rows} as the card tells it, which cards do long after their data
    changed.
    """
    lines = ["---"]
    if claims:
        lines += ["dataset_info:", "  splits:"]
        for split, count in claims.items():
            lines += [f"  - name: {split}", "    num_bytes: 1", f"    num_examples: {count}"]
    lines += ["configs:"]
    for config, splits in configs.items():
        lines += [f"- config_name: {config}", "  data_files:"]
        for split, pattern in splits.items():
            lines += [f"  - split: {split}", f"    path: {pattern}"]
    return "\n".join([*lines, "---", "# A data set", ""]).encode()
