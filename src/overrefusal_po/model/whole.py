"""Whether the files of a model or a checkpoint are whole, and all its tensors were read.

write_hashes(folder, folder / "hashes.json")
damaged(folder, folder / "hashes.json")         # ["model.safetensors"], or []
check_tensors("my/model", info)                 # of from_pretrained(output_loading_info=True)
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from overrefusal_po.model.stamps import file_sha256
from overrefusal_po.records import write_atomic

CHANGEABLE = ("README.md", "generation_config.json", ".gitattributes")
"""Files of a model that people may edit without another model coming of it."""

KNOWN_EXTRA = re.compile(
    r"rotary_emb\.inv_freq$|\.attn\.(?:masked_)?bias$"
    r"|^(?:model\.)?(?:vision_|visual\.|audio_|multi_modal_projector\.|image_newline)"
)
"""Buffers that newer code computes, and the parts for pictures and sound of a model whose text part
is loaded alone."""

NOT_READ = ("missing_keys", "mismatched_keys")

SHOWN = 3

THREADS = 4
"""Files that one process hashes at a time. Python lets go of its lock meanwhile."""

Hashing = Callable[[Path, Collection[str]], dict[str, str]]
"""(a folder, names of files in it) -> {name: SHA-256}, in the order of the names."""


def hashes_of(folder: Path, names: Collection[str]) -> dict[str, str]:
    """{name: SHA-256} of files in `folder`, several at a time.

    Raises OSError, which names the file, if one cannot be read.
    """

    def hashed(name: str) -> str:
        try:
            return file_sha256(folder / name)
        except OSError as error:
            error.filename = error.filename or str(folder / name)  # a failed read has none
            raise

    # the largest first, so that none of them begins when the others are done
    ordered = sorted(names, key=lambda name: (folder / name).stat().st_size, reverse=True)
    with ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1)) as pool:
        found = dict(zip(ordered, pool.map(hashed, ordered), strict=True))
    return {name: found[name] for name in names}


def write_hashes(folder: Path, file: Path, hashing: Hashing = hashes_of) -> None:
    """Writes the SHA-256 of each file in `folder` to `file`."""
    names = [
        str(path.relative_to(folder))
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path != file and path.name not in CHANGEABLE
    ]
    write_atomic(file, json.dumps({"sha256": hashing(folder, names)}, indent=1))


def damaged(folder: Path, file: Path, hashing: Hashing = hashes_of) -> list[str]:
    """The files of `folder` that are missing or not as `file` says; [] without that file.

    An unreadable `file` is the damaged one.
    """
    if not file.is_file():
        return []
    try:
        known: Mapping[str, str] = json.loads(file.read_bytes())["sha256"]
    except (ValueError, KeyError, TypeError):
        return [file.name]
    found = hashing(folder, [name for name in known if (folder / name).is_file()])
    return [name for name, digest in known.items() if found.get(name) != digest]


def hashes_beside(folder: Path) -> Path:
    """Where the hashes of a saved model stand: beside its folder, which holds no odd files."""
    return folder.with_name(f"{folder.name}.sha256.json")


def check_model_files(folder: Path) -> None:
    """Raises ValueError if files of a model that a run saved are damaged or missing."""
    if bad := damaged(folder, hashes_beside(folder)):
        raise ValueError(
            f"{folder}: {first_names(bad)} are not as they were saved: damaged, missing or "
            "changed. Copy the folder again, or train again. If you changed them yourself, delete "
            f"{hashes_beside(folder).name} beside it."
        )


@contextlib.contextmanager
def named_faults(name: str) -> Iterator[None]:
    """Within, what a loader says of a model's files becomes a ValueError that names the model."""
    from safetensors import SafetensorError

    try:
        yield
    except (SafetensorError, OSError, EOFError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise ValueError(
            f"{name}: its weights cannot be read ({' '.join(lines[:2])[:300]}). A file is damaged "
            "or missing, or config.json is another model's. Copy or download it again."
        ) from None


def check_tensors(name: str, info: Mapping[str, Iterable[object]]) -> None:
    """Raises ValueError for tensors that a model's files lack, or that its class does not have.

    transformers draws missing ones at random and drops the others, with a warning alone.
    """
    missing, mismatched = (sorted(map(key_of, info.get(key) or ())) for key in NOT_READ)
    extra = sorted(
        str(key) for key in info.get("unexpected_keys") or () if not KNOWN_EXTRA.search(str(key))
    )
    if missing:
        raise ValueError(
            f"{name}: its files hold no tensors for {first_names(missing)}, which would be random. "
            "The folder is incomplete, or it is no causal language model of this class "
            "(config.json)."
        )
    if mismatched:
        raise ValueError(
            f"{name}: tensors of another shape than config.json says: {first_names(mismatched)}."
        )
    if extra:
        raise ValueError(
            f"{name}: its files hold tensors that the model in its config.json does not have: "
            f"{first_names(extra)}. They would be left out. Give the config.json of these weights."
        )


def key_of(entry: object) -> str:
    """A tensor's name: alone, or in front of its two shapes."""
    return str(entry[0] if isinstance(entry, tuple) else entry)


def first_names(names: list[str]) -> str:
    """The first names of a list, and how many more there are."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
