"""overrefusal-po: teach a chat model to answer what only sounds dangerous, and prove that it still
refuses harm.

    from overrefusal_po import dpo_trainer, orpo_trainer, cpo_trainer, kto_trainer
    from overrefusal_po import derta_trainer, dro_trainer, sft_trainer
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
    from overrefusal_po.api import curate as curate_pairs
    from overrefusal_po.api import evaluate as evaluate_model
    from overrefusal_po.api import judge as judge_responses
    from overrefusal_po.cli import launch as launch
    from overrefusal_po.train.cpo import cpo_trainer as cpo_trainer
    from overrefusal_po.train.derta import derta_trainer as derta_trainer
    from overrefusal_po.train.dpo import dpo_trainer as dpo_trainer
    from overrefusal_po.train.dro import dro_trainer as dro_trainer
    from overrefusal_po.train.kto import kto_trainer as kto_trainer
    from overrefusal_po.train.orpo import orpo_trainer as orpo_trainer
    from overrefusal_po.train.sft import sft_trainer as sft_trainer

__version__ = "0.1.0"
__all__ = [
    "cpo_trainer",
    "curate_pairs",
    "derta_trainer",
    "dpo_trainer",
    "dro_trainer",
    "evaluate_model",
    "judge_responses",
    "kto_trainer",
    "launch",
    "orpo_trainer",
    "sft_trainer",
]

OTHER_PLACES = {
    "launch": ("overrefusal_po.cli", "launch"),
    "curate_pairs": ("overrefusal_po.api", "curate"),
    "evaluate_model": ("overrefusal_po.api", "evaluate"),
    "judge_responses": ("overrefusal_po.api", "judge"),
}
"""Name -> (module, its name there), for the names that are no factory."""


def __getattr__(name: str) -> object:
    """Loads the names of `__all__` when they are first used, so that importing the package costs
    nothing."""
    if name not in __all__:
        raise AttributeError(f"module 'overrefusal_po' has no attribute {name!r}")
    factory = (f"overrefusal_po.train.{name.removesuffix('_trainer')}", name)
    place, inner = OTHER_PLACES.get(name, factory)
    return getattr(importlib.import_module(place), inner)


def __dir__() -> list[str]:
    """The names of the module, with those that are loaded when they are first used."""
    return sorted({*globals(), *__all__})
