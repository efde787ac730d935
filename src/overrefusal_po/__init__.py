"""overrefusal-po: teach a chat model to answer what only sounds dangerous, and prove that it still
refuses harm.

    from overrefusal_po import dpo_trainer, orpo_trainer, kto_trainer, derta_trainer, sft_trainer
    overrefusal-po recipes/dpo.yaml              or: accelerate launch recipes/dpo.yaml

The way of the data: recipe -> sources -> engine -> judges -> pairs -> TRL trainer -> model ->
engine -> judges -> outcomes -> metrics -> report. Every arrow that crosses a stage is a file in the
run folder.

The map of the rooms stands in docs/architecture.md.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from overrefusal_po.cli import launch as launch
    from overrefusal_po.train.derta import derta_trainer as derta_trainer
    from overrefusal_po.train.dpo import dpo_trainer as dpo_trainer
    from overrefusal_po.train.kto import kto_trainer as kto_trainer
    from overrefusal_po.train.orpo import orpo_trainer as orpo_trainer
    from overrefusal_po.train.sft import sft_trainer as sft_trainer

__version__ = "0.1.0"
__all__ = ["derta_trainer", "dpo_trainer", "kto_trainer", "launch", "orpo_trainer", "sft_trainer"]


def __getattr__(name: str) -> object:
    """Loads the factories and `launch` when they are first used, so that importing the package
    costs nothing."""
    if name == "launch":
        from overrefusal_po.cli import launch

        return launch
    if name in __all__:
        module = importlib.import_module(f"overrefusal_po.train.{name.removesuffix('_trainer')}")
        return getattr(module, name)
    raise AttributeError(f"module 'overrefusal_po' has no attribute {name!r}")


def __dir__() -> list[str]:
    """The names of the module, with those that are loaded when they are first used."""
    return sorted({*globals(), *__all__})
