"""One stage on several machines: which prompts are a shard's own, and shard folders -> one run
folder.

    overrefusal-po recipes/curate.yaml --shard 2/4
    # on each machine its own, or side by side on one
    overrefusal-po merge runs/curate-1a2b3c4d
    # shard-1-of-4/ ... shard-4-of-4/ in it
    overrefusal-po recipes/curate.yaml
    # judges, pairs and selects from what was put together

A shard works in a folder of its own inside the run's, so that shards never wait for each other's
lock. A merge puts their completions together; the run without `shard` then finds them there, asks
for none again, and goes on.
"""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from overrefusal_po.recipe.sections import Shard
from overrefusal_po.records import Prompt, read_objects

PARTS = ("jsonl", "failed.jsonl", "ledger.jsonl")
"""What of a completions file is put together."""


def in_shard(prompt: Prompt, shard: str | None) -> bool:
    """Whether a recipe's `shard:` has a prompt; null has all. Attacks on one prompt stay
    together."""
    return shard is None or Shard.of(shard).has(prompt.cluster)


def own(prompts: Iterable[Prompt], shard: str) -> list[Prompt]:
    """The prompts that are a shard's, in their order."""
    part = Shard.of(shard)
    return [p for p in prompts if part.has(p.cluster)]


def check_done(folder: Path) -> int:
    """How many shards there are. ValueError where one is missing, not finished, or of another
    recipe than the first."""
    shards = shards_in(folder)
    found = {
        s.name: json.loads(file.read_text())
        for s in shards
        if (file := s / "status.json").is_file()
    }
    for shard in shards:
        status = found.get(shard.name, {})
        if status.get("state") != "done":
            raise ValueError(
                f"{shard} is not finished (it is {status.get('state', 'not begun')!r}). Run the "
                "same command with --shard "
                f"{shard.name.removeprefix('shard-').replace('-of-', '/')} to its end."
            )
        if status["key"] != found[shards[0].name]["key"]:
            raise ValueError(
                f"{shard} is of another recipe, or of other inputs, than {shards[0].name}. Run it "
                "again with the same ones."
            )
    return len(shards)


def merge_shards(folder: Path, *, incomplete: bool = False) -> dict[str, int]:
    """{file: completions} of the files that were put together in `folder` out of its shards'
    folders.

    Raises ValueError where a shard or a shard's file is missing or not finished, where two shards
    hold the same completion, and where a file is in `folder` already. With `incomplete` a file that
    not all shards have is left out: the run makes it itself.
    """
    shards = shards_in(folder)
    names = sorted(
        {path.name.removesuffix(".tally.json") for s in shards for path in s.glob("*.tally.json")}
    )
    if not names:
        raise ValueError(
            f"{folder}: no shard has finished a file of completions. Let the shards run to their "
            "end."
        )
    taken = [
        folder / f"{name}.{part}"
        for name in names
        for part in PARTS
        if (folder / f"{name}.{part}").exists()
    ]
    if taken:
        raise ValueError(
            f"{taken[0]} is there already. Move it away if the shards' completions are to take its "
            "place."
        )
    found = {}
    for name in names:
        lacking = [s.name for s in shards if not (s / f"{name}.tally.json").is_file()]
        if lacking and incomplete:
            continue
        if lacking:
            raise ValueError(
                f"{folder}: {', '.join(lacking)} has not finished {name}.jsonl. Run it to its end, "
                "or merge with incomplete "
                "to leave this file to the run itself."
            )
        check_complete(shards, name)
        found[f"{name}.jsonl"] = sum(1 for _ in rows(s / f"{name}.jsonl" for s in shards))
        put_together(folder, shards, name)
    put_together(folder, [folder, *shards], "verdicts")  # so that slow judges are not asked again
    return found


def shards_in(folder: Path) -> list[Path]:
    """The folders of all shards, in order. ValueError where one is missing, or where they are of
    two divisions."""
    matches = [
        (re.fullmatch(r"shard-(\d+)-of-(\d+)", path.name), path)
        for path in folder.glob("shard-*-of-*")
    ]
    numbered = {(int(m[2]), int(m[1])): path for m, path in matches if m}
    counts = {count for count, _ in numbered}
    if len(counts) != 1:
        raise ValueError(
            f"{folder} holds shards of {sorted(counts) or 'no'} divisions; one is needed "
            "(shard-1-of-4, ...)."
        )
    count = counts.pop()
    missing = [f"{n}/{count}" for n in range(1, count + 1) if (count, n) not in numbered]
    if missing:
        raise ValueError(
            f"{folder}: the shards {', '.join(missing)} are missing. Run them, or copy their "
            "folders here."
        )
    return [numbered[count, n] for n in range(1, count + 1)]


def check_complete(shards: Iterable[Path], name: str) -> None:
    """Raises ValueError where a shard's rows are not as many as it counted, or where a completion
    is there twice."""
    seen: Counter[tuple[Any, ...]] = Counter()
    for shard in shards:
        tally = json.loads((shard / f"{name}.tally.json").read_text())
        for part, count in (
            (f"{name}.jsonl", tally["completed"]),
            (f"{name}.failed.jsonl", tally["failed"]),
        ):
            keys = [key_of(row) for row in rows([shard / part])]
            if len(keys) != count:
                raise ValueError(
                    f"{shard / part} holds {len(keys)} rows, but {count} were counted when it was "
                    "finished."
                )
            seen.update(keys)
    twice = next((key for key, count in seen.items() if count > 1), None)
    if twice is not None:
        raise ValueError(
            f"{name}.jsonl: prompt {twice[0]}, sample {twice[1]} is in two shards, so they are not "
            "of one run."
        )


def key_of(row: dict[str, Any]) -> tuple[Any, ...]:
    """What is there once: prompt, sample number and sampling."""
    return row["prompt_id"], row.get("sample", 0), json.dumps(row["sampling"], sort_keys=True)


def rows(paths: Iterable[Path]) -> Iterator[dict[str, Any]]:
    """The rows of files that may be empty or not be there."""
    for path in paths:
        if path.is_file() and path.stat().st_size:
            yield from (row for _, row in read_objects(path))


def put_together(folder: Path, shards: Iterable[Path], name: str) -> None:
    """Copies the shards' parts of a file behind each other, beside its place first, so that no half
    of it is ever seen."""
    for part in PARTS:
        sources = [s / f"{name}.{part}" for s in shards if (s / f"{name}.{part}").is_file()]
        target = folder / f"{name}.{part}"
        if sources:
            beside = target.with_name(f".{target.name}.tmp")
            with beside.open("wb") as file:
                for source in sources:
                    with source.open("rb") as piece:
                        shutil.copyfileobj(piece, file)
            beside.replace(target)
