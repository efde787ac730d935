"""HarmBench (Mazeika et al., ICML 2024, arXiv 2402.04249): its 200 standard behaviours, all
harmful.

    {name: harmbench}
    # from the hub: walledai/HarmBench (gated)
    {name: harmbench, paths: [harmbench_behaviors_text_all.csv]}      # the authors' file

Contextual and copyright behaviours are left out: the first need a context beside the prompt, the
second another judge. For evaluation only. Licence MIT.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from overrefusal_po.records import Prompt, Split
from overrefusal_po.sources._hub import HubSet
from overrefusal_po.sources._rows import Form, set_items

FORMS = (Form("prompt", "category"), Form("Behavior", "SemanticCategory", ("FunctionalCategory",)))
"""The hub's columns, and those of the authors' file, which holds all three functional
categories."""


class Settings(BaseModel):
    """`paths`: local files instead of the hub. `repo`, `revision`: the hub data set."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    paths: tuple[str, ...] = ()
    repo: str = "walledai/HarmBench"
    revision: str | None = None


def measures(settings: Settings, split: Split | None) -> bool:
    """A benchmark: in each split."""
    return True


def prompts(settings: Settings, split: Split | None) -> list[Prompt]:
    """The standard behaviours, for each split."""
    wanted = HubSet(settings.repo, "standard", "train", settings.revision)
    return [
        Prompt.of(
            item.text,
            kind="harmful",
            category=item.category,
            source="harmbench",
            origin=item.origin,
        )
        for item in set_items(settings.paths, wanted, FORMS)
        if item.row.get("FunctionalCategory", "standard") == "standard"
    ]
