"""SimpleSafetyTests (Vidgen et al., 2023, arXiv 2311.08370): 100 plainly harmful prompts in five
harm areas.

    {name: simplesafetytests}
    # from the hub: Bertievidgen/SimpleSafetyTests
    {name: simplesafetytests, paths: [sst_test_cases.csv]}

For evaluation only. Licence CC-BY-2.0 on the hub (CC-BY-4.0 in the authors' repository), not gated.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from overrefusal_po.records import Prompt, Split
from overrefusal_po.sources._hub import HubSet
from overrefusal_po.sources._rows import Form, set_items

FORMS = (
    Form("prompt", "harm_area"),
    Form("prompts_final", "harm_area"),
    Form("prompt", "category"),
)
"""The hub's columns, those of the authors' file, and those of local copies. Beside the harm area
both have a `category` (information seeking, instructions and actions), which says how is asked, not
what about."""


class Settings(BaseModel):
    """`paths`: local files instead of the hub. `repo`, `revision`: the hub data set."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    paths: tuple[str, ...] = ()
    repo: str = "Bertievidgen/SimpleSafetyTests"
    revision: str | None = None


def measures(settings: Settings, split: Split | None) -> bool:
    """A benchmark: in each split."""
    return True


def prompts(settings: Settings, split: Split | None) -> list[Prompt]:
    """All 100 prompts, for each split."""
    wanted = HubSet(settings.repo, None, "test", settings.revision)
    return [
        Prompt.of(
            item.text,
            kind="harmful",
            category=item.category,
            source="simplesafetytests",
            origin=item.origin,
        )
        for item in set_items(settings.paths, wanted, FORMS)
    ]
