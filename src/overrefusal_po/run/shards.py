"""One stage on several machines: the prompts of each shard, and shard folders -> one run folder.

    overrefusal-po recipes/curate.yaml --shard 2/4
    # each machine runs its own shard; one machine may run several side by side
    overrefusal-po merge runs/curate-1a2b3c4d
    # it holds shard-1-of-4/ ... shard-4-of-4/
    overrefusal-po recipes/curate.yaml
    # judges, pairs and selects from the merged completions; an evaluation judges and measures

Each shard works in its own folder inside the run's folder, so no shard waits for another's lock. A
merge puts their completions together. The run without `shard` then finds them, asks for none again,
and goes on.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from overrefusal_po.recipe.shard import Shard
from overrefusal_po.records import Prompt, content_id, read_state, write_atomic
from overrefusal_po.run.appender import rows_if_any
from overrefusal_po.run.keys import file_hash
from overrefusal_po.run.ledger import VERDICTS_LEDGER

PARTS = ("jsonl", "failed.jsonl", "ledger.jsonl")
"""Endings of the files that belong to one completions file and are merged."""

MERGED = "merged.json"
"""The file in which a merge notes of which shards it is, and whether it is done."""

CompletionKey = tuple[str, int, str]
"""Prompt id, sample number, sampling as JSON: what a run draws once."""


def shard_prompts(prompts: Iterable[Prompt], shard: str) -> list[Prompt]:
    """The prompts of one shard, in their order. All attacks on a prompt are in its shard."""
    part = Shard.of(shard)
    return [p for p in prompts if part.has(p.cluster)]


def check_done(folder: Path) -> int:
    """The number of shards. ValueError if one is missing, not finished, or of another recipe than
    the first."""
    shards = shard_folders(folder)
    found = {
        s.name: read_state(file, ["state", "key"])
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


def merge_folder(folder: Path) -> list[str]:
    """What was put together, in lines. A merge that was killed is done again from its beginning.
    So is one whose shards were run again since. Another one stays.

    ValueError as `check_done` and `put_together`, if files are there already, and if a run has
    begun on what the shards held before they were run again.

    A shard may have stopped at a source of rejects that it did not need, or have no question of an
    attack. The whole run then asks for the rest.
    """
    count = check_done(folder)
    shards = shard_folders(folder)
    names = completions_files(folder, shards)
    key = read_state(shards[0] / "status.json")["key"]
    file = folder / MERGED
    known = read_state(file) if file.is_file() else {}
    ours = known.get("shards") == count and known.get("key") == key
    if ours and known.get("done") and is_merged(folder):
        check_same_shards(folder, known)
        if not changed_shards(folder, known):
            return [f"{folder}: its {count} shards are merged already"]
    if ours:
        remove_merged(folder, known.get("files", names))
    else:
        check_nothing_there(folder, names)
    content = {shard.name: shard_hash(shard) for shard in shards}
    this = {"shards": count, "key": key, "files": names, "content": content}
    write_atomic(file, json.dumps({**this, "done": False}))
    found = put_together(folder, shards, names)
    write_atomic(file, json.dumps({**this, "done": True}))
    return [
        f"{folder / name}: {rows} completions of {count} shards, each once"
        for name, rows in found.items()
    ]


def check_merged(folder: Path) -> None:
    """Raises ValueError if a folder holds shards that nobody has merged, whose merge was killed, or
    that were run again since: a run would ask for completions again that a later merge would
    replace, or use others than the shards hold."""
    file = folder / MERGED
    killed = file.is_file() and not read_state(file, ["done"])["done"]
    if any(folder.glob("shard-*-of-*")) and (killed or not is_merged(folder)):
        raise ValueError(
            f"{folder} holds shards that are not merged{' to the end' if killed else ''}. Run "
            f"`overrefusal-po merge {folder}` first, or move the shards' folders away to ask for "
            "everything again."
        )
    known = read_state(file) if file.is_file() else {}
    check_same_shards(folder, known)
    if changed := changed_shards(folder, known):
        raise ValueError(
            f"{folder}: {', '.join(changed)} changed after the merge. Run `overrefusal-po merge "
            f"{folder}` again."
        )


def check_same_shards(folder: Path, known: Mapping[str, Any]) -> None:
    """Raises ValueError if a run has begun in `folder` on what its shards held before. `known`:
    what merged.json says."""
    changed = changed_shards(folder, known)
    if changed and (folder / "status.json").is_file():
        raise ValueError(
            f"{folder}: {', '.join(changed)} changed after the merge, and the run there works on "
            "what was merged. To use the new completions, delete everything in that folder but the "
            "shards' folders, and merge again. To go on with the old ones, move the shards' "
            "folders away."
        )


def changed_shards(folder: Path, known: Mapping[str, Any]) -> list[str]:
    """The names of shards that hold other rows than those that were merged. A shard that is gone
    counts as unchanged, and so does one that an earlier version merged."""
    return [
        name
        for name, content in known.get("content", {}).items()
        if (folder / name).is_dir() and shard_hash(folder / name) != content
    ]


def shard_hash(shard: Path) -> str:
    """16 hex digits for the rows that a shard holds."""
    return content_id(sorted((file.name, file_hash(file)) for file in shard.glob("*.jsonl")))


def remove_merged(folder: Path, names: Iterable[str]) -> None:
    """Deletes what a merge has written of these completions files."""
    for name in names:
        for part in PARTS:
            (folder / f"{name}.{part}").unlink(missing_ok=True)


def is_merged(folder: Path) -> bool:
    """Whether any completions are in a run's own folder."""
    return any(folder.glob("*.jsonl"))


def put_together(folder: Path, shards: Sequence[Path], names: Iterable[str]) -> dict[str, int]:
    """{file: completions} of the files that were merged from the shards into `folder`. What is
    there is replaced.

    A file that some shard has not finished is left out, and the run makes it. A shard that has
    nothing of a file is passed over. ValueError if two shards hold the same completion, or if rows
    are missing.
    """
    found = {}
    for name in names:
        having = [s for s in shards if any(s.glob(f"{name}.*"))]
        if not all((s / f"{name}.tally.json").is_file() for s in having):
            continue
        check_complete(having, name)
        found[f"{name}.jsonl"] = sum(1 for s in shards for _ in rows_if_any(s / f"{name}.jsonl"))
        concatenate(folder, shards, name)
    join_verdicts(folder, shards)
    return found


def completions_files(folder: Path, shards: Sequence[Path]) -> list[str]:
    """Names, without ending, of the completions files that any shard has finished. ValueError if
    none has."""
    names = {
        path.name.removesuffix(".tally.json") for s in shards for path in s.glob("*.tally.json")
    }
    if not names:
        raise ValueError(
            f"{folder}: no shard has finished a file of completions. Let the shards run to their "
            "end."
        )
    return sorted(names)


def check_nothing_there(folder: Path, names: Iterable[str]) -> None:
    """Raises ValueError if a merge would overwrite a file of `folder`."""
    files = [folder / f"{name}.{part}" for name in names for part in PARTS]
    taken = next((file for file in files if file.exists()), None)
    if taken is not None:
        raise ValueError(
            f"{taken} is there already. Move it away if the shards' completions are to take its "
            "place."
        )


def shard_folders(folder: Path) -> list[Path]:
    """The folders of all shards, in order. ValueError if one is missing, or if some are of another
    division."""
    matches = [
        (re.fullmatch(r"shard-(\d+)-of-(\d+)", path.name), path)
        for path in folder.glob("shard-*-of-*")
    ]
    numbered = {(int(m[2]), int(m[1])): path for m, path in matches if m}
    counts = {count for count, _ in numbered}
    if not counts:
        what = "holds no shards" if folder.is_dir() else "is no folder"
        raise ValueError(
            f"{folder} {what}. Give the run folder that holds shard-1-of-4 and the others, or the "
            "recipe with its overrides."
        )
    if len(counts) > 1:
        raise ValueError(
            f"{folder} holds shards of {sorted(counts)} divisions; one is needed "
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
    """Raises ValueError if a shard has more or fewer rows than it counted, or if a completion comes
    twice."""
    seen: Counter[CompletionKey] = Counter()
    for shard in shards:
        tally = read_state(shard / f"{name}.tally.json", ["completed", "failed"])
        for part, count in (
            (f"{name}.jsonl", tally["completed"]),
            (f"{name}.failed.jsonl", tally["failed"]),
        ):
            keys = [completion_key(row) for row in rows_if_any(shard / part)]
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


def completion_key(row: Mapping[str, object]) -> CompletionKey:
    """The key of a completions file's row."""
    sample = row.get("sample", 0)
    assert isinstance(sample, int)
    return str(row["prompt_id"]), sample, json.dumps(row["sampling"], sort_keys=True)


def concatenate(folder: Path, shards: Iterable[Path], name: str) -> None:
    """Joins the shards' parts of a file."""
    for part in PARTS:
        sources = [s / f"{name}.{part}" for s in shards if (s / f"{name}.{part}").is_file()]
        if sources:
            write_lines(folder / f"{name}.{part}", lines_of(sources))


def join_verdicts(folder: Path, shards: Sequence[Path]) -> None:
    """Puts the shards' verdicts behind those of `folder`, each once, so that slow judges are not
    asked again. A merge that was killed may have put them there already. The shards' ledgers of
    verdicts become one."""
    files = [place / "verdicts.jsonl" for place in (folder, *shards)]
    sources = [file for file in files if file.is_file()]
    if sources:
        write_lines(folder / "verdicts.jsonl", dict.fromkeys(lines_of(sources)))
    ledgers = [file for s in shards if (file := s / VERDICTS_LEDGER).is_file()]
    if ledgers:  # two verdicts may cost the same, so equal lines are all kept
        write_lines(folder / VERDICTS_LEDGER, lines_of(ledgers))


def lines_of(files: Iterable[Path]) -> Iterator[bytes]:
    """The whole lines of files, one file after the other; a torn last one is left out."""
    for file in files:
        with file.open("rb") as lines:
            yield from (line for line in lines if line.endswith(b"\n"))


def write_lines(target: Path, lines: Iterable[bytes]) -> None:
    """Writes a file beside its place and renames it, so nobody sees half of it."""
    unfinished = target.with_name(f".{target.name}.tmp")
    with unfinished.open("wb") as file:
        file.writelines(lines)
    unfinished.replace(target)
