"""The folder of a LoRA adapter -> the name under which a server serves it, and its content's hash.

    adapter = served_adapter("runs/dpo-1a2b3c4d/adapter")
    adapter.name        # "overrefusal-po-5f3a09c2d1e4b687": the same for the same content alone
    adapter.words       # "the adapter runs/dpo-1a2b/adapter (rank 16, trained on Qwen/Qwen3-8B)"

Reads no tensor.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from overrefusal_po.model.adapter_config import CONFIG, more_than_plain
from overrefusal_po.records import read_state

WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
"""The files of peft, of which servers read the first that is there."""

MARK = "overrefusal-po-"
"""How the names of adapters begin that a run loads into a server."""

GIVE = (
    "Give the folder adapter/ of a training with LoRA (runs/dpo-1a2b3c4d/adapter), or "
    "@stage.adapter in a pipeline."
)

RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM's --max-lora-rank may be; its default is 16."""


class ServedAdapter(NamedTuple):
    """An adapter that servers are to serve."""

    folder: Path
    """As the recipe gives it."""
    name: str
    """Its name at the servers. Two adapters with other content have other names."""
    rank: int
    """The rank of its matrices."""
    base: str
    """The model that it was trained on, as it says itself; "" if it does not say."""
    by_root: bool = False
    """Whether its scale is lora_alpha / sqrt(rank) and not lora_alpha / rank (`use_rslora`)."""

    @property
    def words(self) -> str:
        """What it is, for a sentence."""
        base = f", trained on {self.base}" if self.base else ""
        return f"the adapter {self.folder} (rank {self.rank}{base})"

    @property
    def max_rank(self) -> int:
        """The smallest --max-lora-rank that vLLM takes and that is enough."""
        return next((rank for rank in RANKS if rank >= self.rank), self.rank)

    def check_unchanged(self) -> None:
        """Raises ValueError if the folder holds another adapter now than at the start."""
        if self.name != adapter_name(self.folder):
            raise ValueError(
                f"engine.adapter: {self.folder} changed while it was measured, so its responses "
                "would be those of two adapters. Delete the run folder, and measure the adapter "
                "when its training has ended."
            )


def served_adapter(path: str) -> ServedAdapter:
    """The adapter in a folder. ValueError if there is none, or one that no server serves whole."""
    folder = Path(path).expanduser()
    name = adapter_name(folder)
    if name is None:
        missing = CONFIG if not (folder / CONFIG).is_file() else WEIGHTS[0]
        what = f"holds no {missing}" if folder.is_dir() else "is no folder"
        raise ValueError(f"engine.adapter: {path!r} is no adapter: it {what}. {GIVE}")
    config = read_state(folder / CONFIG, ("peft_type",), remedy=GIVE)
    check_servable(config, path)
    base = config.get("base_model_name_or_path") or ""
    return ServedAdapter(folder, name, config["r"], base, bool(config.get("use_rslora")))


# Any: a config of peft's
def check_servable(config: Mapping[str, Any], path: str) -> None:
    """Raises ValueError for an adapter that is more than LoRA with one rank: servers refuse what is
    more, or leave it out without a word. They give all modules the scale lora_alpha / r."""
    more = more_than_plain(config)
    if more is None and (ranks := config.get("rank_pattern")):
        more = "rank_pattern", ranks
    if more is not None:
        raise ValueError(
            f"engine.adapter: {path}: {more[0]} is {more[1]!r}. Servers serve plain LoRA alone, "
            "with one rank. Serve the merged model (model/ beside adapter/) without engine.adapter."
        )
    if not isinstance(config.get("r"), int):
        raise ValueError(f"engine.adapter: {path}: its rank r is {config.get('r')!r}. {GIVE}")


def adapter_hash(folder: Path) -> str | None:
    """16 hex digits for an adapter's config and weights; None if the folder holds no adapter.

    Its other files (a model card) do not count. The weights are read whole.
    """
    weights = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if weights is None or not (folder / CONFIG).is_file():
        return None
    found = hashlib.sha256()
    for path in (folder / CONFIG, weights):
        with path.open("rb") as file:
            found.update(hashlib.file_digest(file, "sha256").digest())
    return found.hexdigest()[:16]


def adapter_name(folder: Path) -> str | None:
    """The name of the adapter in a folder at a server; None if the folder holds no adapter."""
    found = adapter_hash(folder)
    return found and MARK + found
