"""A folder in the cache is what was written: `converted.json` holds size and hash of each file.

write_stamp(folder, source_sha256)
cache_fault(folder, source_sha256)    # None, or 'config.json was changed'
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

STAMP = "converted.json"

HASHED: dict[tuple[Path, int, int, int, int], str] = {}
"""(path, inode, size, nanoseconds of both change times) -> SHA-256, for the files that this process
read. A program may set the first time to any value, but not the second.

Hashing a gigabyte takes about a second, and a command asks for a model several times."""


def write_stamp(folder: Path, source_sha256: str) -> None:
    """Writes the hash of what was converted, and of each file that the folder holds now."""
    files = {
        name: {"bytes": path.stat().st_size, "sha256": file_sha256(path)}
        for name, path in sorted(files_in(folder).items())
    }
    text = json.dumps({"source_sha256": source_sha256, "files": files}, indent=1)
    (folder / STAMP).write_text(text, encoding="utf-8")


def cache_fault(folder: Path, source_sha256: str) -> str | None:
    """What is wrong with a folder, naming the file; None if it holds what was written.

    A file that is missing, changed, or was added is wrong, and so is a stamp that cannot be read.
    """
    try:
        stamp = json.loads((folder / STAMP).read_bytes())
        written = {name: (file["bytes"], file["sha256"]) for name, file in stamp["files"].items()}
        source = stamp["source_sha256"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return f"{STAMP} is missing or cannot be read"
    if source != source_sha256:
        return f"{STAMP} names another source"
    found = files_in(folder)
    if strange := sorted(found.keys() ^ written.keys()):
        return f"{strange[0]} {'was added' if strange[0] in found else 'is missing'}"
    for name, (size, sha256) in written.items():
        if found[name].stat().st_size != size or known_sha256(found[name]) != sha256:
            return f"{name} was changed"
    return None


def files_in(folder: Path) -> dict[str, Path]:
    """{name below the folder: path} of all files in a folder except the stamp."""
    paths = (Path(root) / name for root, _, names in os.walk(folder) for name in names)
    files = {path.relative_to(folder).as_posix(): path for path in paths}
    files.pop(STAMP, None)
    return files


def known_sha256(path: Path) -> str:
    """The SHA-256 of a file; computed again only if inode, size or a time of change differ."""
    stat = path.stat()
    key = (path, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
    if key not in HASHED:
        HASHED[key] = file_sha256(path)
    return HASHED[key]


def file_sha256(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
