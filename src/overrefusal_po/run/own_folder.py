"""A folder -> whether a run may write there: it is new, empty, or a run's own.

    check_own(folder)         # ValueError: somebody else's files, a link, a file
    make_private(folder)
    made_nothing(folder)     # a run began there and made nothing

A run replaces and deletes files in its folder, so those of somebody else must stay.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

BEGUN = frozenset({"status.json", "recipe.yaml", "log", "log.1"})
"""What a run writes before its work begins."""


def made_nothing(folder: Path) -> bool:
    """Whether a run's folder holds only what is written before the work begins."""
    names = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
    return names <= BEGUN


def drop_leftovers(folder: Path) -> None:
    """Deletes what a killed run was writing: hidden files and folders that end in .tmp. Only who
    holds the lock may call this."""
    for path in folder.glob(".*.tmp"):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def make_private(folder: Path) -> None:
    """Creates a folder, and what is missing above it, that only its owner may enter (mode 0700):
    responses of a model may be harmful. A folder that exists keeps its mode."""
    for path in reversed([folder, *folder.parents]):
        try:
            if not path.exists():
                path.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise ValueError(
                f"{folder}: the folder {path} cannot be made ({error.strerror}). Give the path of "
                "a folder in which you may write."
            ) from None


def check_own(folder: Path) -> None:
    """Raises ValueError unless a folder is new, empty, a run's, or holds the shards of one; and if
    a link is in it.

    A run replaces and deletes files in its folder. Those of somebody else must stay, and a link
    would let it write to theirs.
    """
    for path in [*folder.glob("*"), *folder.glob("checkpoints/*")]:
        if path.is_symlink():
            raise ValueError(
                f"run_dir: {path} is a link (to {path.readlink()}). A run writes into its own "
                "folder and follows no links. Delete the link, or let run_dir itself lead to the "
                "other disk."
            )
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"run_dir: {folder} is a file. Give the path of a new or an empty folder.")
    if not folder.is_dir() or (folder / "status.json").is_file():
        return
    names = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    if names and not any(re.fullmatch(r"shard-\d+-of-\d+", name) for name in names):
        shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
        raise ValueError(
            f"run_dir: {folder} is not empty, and it is no run folder (it holds {shown}). A run "
            "replaces files in its folder. Give the path of a new or an empty one."
        )
