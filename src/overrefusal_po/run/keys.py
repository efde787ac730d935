"""Recipe and inputs -> the key of a run, which says whether a run goes on or is another one.

run_key(resolved, {"data.pairs": file_hash("pairs.jsonl")})    # "1a2b3c4d"
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from overrefusal_po.records import check_regular, content_id, read_state

NOT_KEYED = ("run_dir", "shard", "unscored_max")
"""Keys of a recipe, and of a pipeline's stage, that do not change what a run makes."""

NEWER_KEYS = {
    ("train", "data", "harmful_share"): None,  # a curation had it from the start
    ("train", "data", "shard"): None,
    ("train", "data", "rows"): ["prefix", "rto"],
    ("train", "data", "weights"): None,
    ("train", "hold", "start"): None,
    ("train", "search"): None,
    ("curate", "data", "length_ratio_max"): None,
    ("curate", "later_round"): None,
    ("evaluate", "tamper", "defences"): ["none"],
    ("evaluate", "tamper", "refusal_share"): 0.1,
    ("evaluate", "tamper", "reference"): None,
    ("evaluate", "shard"): None,  # in a pipeline, where it is never set
}
"""Paths of recipe keys that came later, each behind its task, with the value of before. A run at
that value keeps its key. In a pipeline each stage has a task."""

ENGINE_NOT_KEYED = (
    "base_url",
    "adapter_on_server",
    "api_key_env",
    "concurrency",
    "timeout_seconds",
    "max_retries",
    "backoff_seconds",
    "token_budget",
    "max_tokens_name",
    "max_reply_bytes",
    "wait_seconds",
    "top_logprobs",
)
"""Engine keys that say where and how fast, not what. A run can go on with another server, a greater
budget, or more log-probs of a guard."""


def run_key(resolved: Mapping[str, object], inputs: Mapping[str, str]) -> str:
    """8 hex digits for a resolved recipe and the hashes of its inputs."""
    return content_id(keyed(resolved), dict(inputs))[:8]


def keyed(
    values: Mapping[str, object],
    *,
    left_out: Sequence[str] = NOT_KEYED,
    path: tuple[str, ...] = (),
) -> dict[str, object]:
    """The part of a resolved recipe that decides what a run makes. `path`: where it stands."""
    found: dict[str, object] = {}
    is_pipeline = not path and values.get("task") == "pipeline"
    path = path or (str(values.get("task")),)
    for name, value in values.items():
        here = () if is_pipeline else (*path, name)
        if isinstance(value, Mapping):
            inner = ENGINE_NOT_KEYED if name == "engine" else ()
            stage_or_inner = NOT_KEYED if is_pipeline else inner
            found[name] = keyed(value, left_out=stage_or_inner, path=here)
        elif name not in left_out and not (here in NEWER_KEYS and value == NEWER_KEYS[here]):
            found[name] = keyed_items(value, here) if isinstance(value, list | tuple) else value
    return found


def keyed_items(values: Iterable[object], path: tuple[str, ...]) -> list[object]:
    """A list of a resolved recipe, each mapping in it as `keyed` has it (the engines of an
    attack). `path`: where the list stands."""
    return [
        keyed(one, left_out=(), path=(*path, str(at))) if isinstance(one, Mapping) else one
        for at, one in enumerate(values)
    ]


def run_folder(name: str, resolved: Mapping[str, object], inputs: Mapping[str, str]) -> Path:
    """The recipe's `run_dir`, else runs/<recipe>-<key>."""
    fixed = resolved.get("run_dir")
    return (
        Path(str(fixed)).expanduser()
        if fixed
        else Path("runs") / f"{name}-{run_key(resolved, inputs)}"
    )


HASHED_WHOLE = 2**33
"""Bytes of a file that is hashed as a whole, at most."""


def file_hash(path: str | Path) -> str:
    """16 hex digits for a file's content, or for a folder (a model): names and samples of its
    files. A very large file is sampled too. ValueError for a pipe or a device."""
    path = Path(path)
    if path.is_dir():
        return content_id(sorted((f.name, sample_hash(f)) for f in path.iterdir() if f.is_file()))
    check_regular(path, "a file")
    if path.stat().st_size > HASHED_WHOLE:
        return sample_hash(path)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def path_hash(path: Path) -> str:
    """The key of the stage that made this output, else the hash of the path's content."""
    status = path.parent / "status.json"
    if path.is_dir() and status.is_file() and (key := read_state(status).get("key")):
        return str(key)
    return file_hash(path)


def sample_hash(path: Path, *, blocks: int = 256, width: int = 2**16) -> str:
    """16 hex digits for a file's size and at most `blocks` blocks of `width` bytes, spread evenly.

    A file of up to 16 MiB is read whole. Training changes every block of the weights, so samples
    are enough there, and many GiB take seconds.
    """
    size = path.stat().st_size
    found = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        for number in range(blocks):
            if size > blocks * width:
                file.seek(number * (size - width) // (blocks - 1))
            found.update(file.read(width))
    return found.hexdigest()[:16]
