"""Files of JSON, in and out: JSON Lines of records, and the state files of a run.

    prompts = read_jsonl("prompts.jsonl", Prompt)
    write_jsonl("copy.jsonl", prompts)
    read_state("runs/demo/status.json", ["state"])

A fault is a ValueError with file and line. `records` has these functions too.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from overrefusal_po.origin import JsonObject

logger = logging.getLogger(__name__)

START_OVER = "Restore the file, or delete its folder and run the same command again."
"""What to do about a damaged file of a run."""

NO_PLACE = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG}
"""Errors of the system that say that a path is no place for a file: whoever gave it mends that."""

PASSING = (errno.ESTALE, errno.EBUSY, errno.EAGAIN, errno.EINTR, errno.ETIMEDOUT)
"""Errors of a file server that may be gone a moment later."""

HALF = re.compile(rb"\\u[dD][89a-fA-F]")
"""How JSON writes half of a character, or each half of a whole one."""

PAUSES_SECONDS = (0.1, 0.5, 2.0)

R = TypeVar("R", bound=BaseModel)


def read_objects(path: str | os.PathLike[str]) -> Iterator[tuple[int, JsonObject]]:
    """(line number from 1, object) for every line that is not blank.

    Raises ValueError with file, line and column if a line is no JSON object, and ValueError if the
    file holds no row at all.
    """
    file = Path(path)
    check_regular(file, "a JSON Lines file (one object a line)")
    found = False
    with file.open("rb") as lines:
        for number, raw in enumerate(lines, 1):
            value = json_object(raw, file, number)
            if value is not None:
                if HALF.search(raw):
                    check_characters(value, f"{file}, line {number}")
                found = True
                yield number, value
    if not found:
        raise ValueError(f"{file}: the file holds no rows. At least one JSON object is needed.")


def check_characters(value: object, place: str) -> None:
    """Raises ValueError if a text inside of a value holds half of a character: it would fail when
    it is written, after all work."""
    try:
        json.dumps(value, ensure_ascii=False, default=str, skipkeys=True).encode()
    except UnicodeEncodeError as error:
        raise ValueError(half_words(error, place)) from None


def half_words(error: UnicodeEncodeError, place: str) -> str:
    """What is wrong with a text that cannot be encoded, in words."""
    return (
        f"{place}: a text holds half of a character (\\u{ord(error.object[error.start]):04x}), "
        "which UTF-8 cannot write. Delete it, or the row."
    )


def is_too_long(path: Path) -> bool:
    """Whether the system says that no file can have so long a name. pathlib raises OSError then."""
    try:
        path.stat()
    except OSError as error:
        return error.errno == errno.ENAMETOOLONG
    except ValueError:  # a character that no path can hold
        pass
    return False


def is_file(path: Path) -> bool:
    """Whether a path that a user gave is a file; a name that is too long is none."""
    return not is_too_long(path) and path.is_file()


def check_regular(file: Path, wanted: str) -> None:
    """Raises ValueError if a path is no regular file: a folder, or a pipe or device that may never
    end."""
    if is_file(file):
        return
    found = "there is no such file"
    if is_too_long(file):
        found = "no file can have so long a name"
    elif file.is_dir():
        found = "this is a folder"
    elif file.exists():
        found = "this is a pipe or a device, which may never end. Save its rows into a file first"
    raise ValueError(f"{file}: {found}. Give the path of {wanted}.")


def without_doubles(fields: Sequence[tuple[str, object]]) -> JsonObject:
    """The object of these fields. ValueError if a key is there twice: one value would be lost."""
    value = dict(fields)
    if len(value) != len(fields):
        keys = [key for key, _ in fields]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {twice!r} is there twice; keep one")
    return value


def json_object(raw: bytes, file: Path, number: int) -> JsonObject | None:
    """The object of one line, None if the line is blank; ValueError if it is no JSON object."""
    try:
        # Windows tools write a byte order mark
        line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{file}, line {number}, byte {error.start + 1}: this is not UTF-8. Save the file as "
            "UTF-8."
        ) from None
    if not line.strip():
        return None
    try:
        value = json.loads(line, object_pairs_hook=without_doubles)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{file}, line {number}, column {error.colno}: this is not JSON ({error.msg}). Every "
            "line must be one JSON object; fix or delete the line."
        ) from None
    except (RecursionError, ValueError) as error:
        why = "it is nested too deep" if isinstance(error, RecursionError) else str(error)
        raise ValueError(
            f"{file}, line {number}: this JSON cannot be read ({why}). Fix or delete the line."
        ) from None
    if not isinstance(value, dict):
        raise ValueError(
            f"{file}, line {number}, column 1: expected a JSON object ({{...}}), got "
            f"{type(value).__name__}."
        )
    return value


# Any: JSON of several files
def read_state(
    path: str | os.PathLike[str], needed: Iterable[str] = (), *, remedy: str = START_OVER
) -> dict[str, Any]:
    """The JSON object of a file that a run wrote, with the keys `needed`.

    Such a file is written whole, so a fault means that a disk lost it or that somebody edited it:
    ValueError with the file, the place and `remedy`, a sentence on what to do.
    """
    file = Path(path)
    try:
        value = json.loads(file.read_bytes())
    except OSError as error:
        raise ValueError(f"{file} cannot be read ({error.strerror}). {remedy}") from None
    except RecursionError:
        raise ValueError(f"{file} is damaged (it is nested too deeply). {remedy}") from None
    except ValueError as error:  # no JSON, or no UTF-8
        raise ValueError(f"{file} is damaged or was edited ({error}). {remedy}") from None
    if not isinstance(value, dict):
        raise ValueError(
            f"{file} is damaged or was edited (a JSON object was expected, it holds "
            f"{type(value).__name__}). {remedy}"
        )
    if missing := [key for key in needed if key not in value]:
        raise ValueError(f"{file} was edited (it has no {missing[0]!r}). {remedy}")
    return value


def read_jsonl(path: str | os.PathLike[str], record: type[R]) -> list[R]:
    """All rows of a JSON Lines file as `record`s; ValueError names file, line and field of the
    first bad row."""
    rows = []
    for number, value in read_objects(path):
        try:
            rows.append(record.model_validate(value))
        except ValidationError as error:
            raise ValueError(
                f"{path}, line {number}: not a {record.__name__}: {first_fault(error)}"
            ) from None
    return rows


def first_fault(error: ValidationError) -> str:
    """`field: what is wrong (given: value)` for the first fault of a pydantic error."""
    fault = error.errors()[0]
    where = ".".join(str(part) for part in fault["loc"]) or "the row"
    given = "" if fault["type"] == "missing" else f" (given: {str(fault['input'])[:80]!r})"
    return f"{where}: {fault['msg']}{given}"


def write_jsonl(path: str | os.PathLike[str], rows: Iterable[BaseModel]) -> Path:
    """Writes `rows` beside `path` and renames, so that a reader never sees half a file."""
    lines = (row.model_dump_json(exclude_defaults=True) + "\n" for row in rows)
    return write_atomic(path, "".join(lines))


def write_atomic(path: str | os.PathLike[str], text: str) -> Path:
    """Writes `text` to `path` as a whole or not at all, and leaves nothing beside it.

    A file server may refuse a rename for a moment (`PASSING`): then it is tried again. ValueError
    if `path` is no place for a file.
    """
    file = Path(path)
    try:
        return written(file, text)
    except OSError as error:
        if error.errno in NO_PLACE:
            raise ValueError(no_place_words(file, error)) from None
        raise


def no_place_words(path: Path, error: OSError) -> str:
    """What to say of a path that nothing can be written to."""
    return (
        f"{path} cannot be written ({error.strerror}). Give a path in a folder in which you may "
        "write."
    )


def written(file: Path, text: str) -> Path:
    """`file`, after `text` was written to it; OSError if it cannot be."""
    file.parent.mkdir(parents=True, exist_ok=True)
    beside = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    try:
        for pause in (*PAUSES_SECONDS, None):
            try:
                beside.write_text(text, encoding="utf-8")
                beside.replace(file)
                return file
            except OSError as error:
                if pause is None or error.errno not in PASSING:
                    raise
                time.sleep(pause)
    finally:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)
    raise AssertionError("the last try returns or raises")


def write_if_possible(path: str | os.PathLike[str], text: str) -> bool:
    """`write_atomic` for a file of the cache. If it cannot be written, a warning says what that
    costs, and the run goes on."""
    try:
        written(Path(path), text)
    except OSError as error:
        logger.warning(
            "%s cannot be written (%s). What would be kept there is computed again in each run: "
            "set OVERREFUSAL_PO_CACHE to a folder in which you may write.",
            Path(path).parent,
            error.strerror,
        )
        return False
    return True
