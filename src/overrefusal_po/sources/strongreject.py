"""StrongREJECT (Souly et al., NeurIPS 2024, arXiv 2402.10260): 313 forbidden prompts in six
categories, all harmful.

    {name: strongreject}
    # from the hub: walledai/StrongREJECT (gated)
    {name: strongreject, paths: [strongreject_dataset.csv]}    # the authors' file

For evaluation only. Licence MIT; prompts taken from earlier work keep theirs.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from overrefusal_po.records import Prompt, Split
from overrefusal_po.sources._hub import HubSet
from overrefusal_po.sources._rows import Form, set_items

FORMS = (Form("prompt", "category"), Form("forbidden_prompt", "category"))
"""The hub's columns, and those of the authors' file."""


class Settings(BaseModel):
    """`paths`: local files instead of the hub. `repo`, `revision`: the hub data set."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    paths: tuple[str, ...] = ()
    repo: str = "walledai/StrongREJECT"
    revision: str | None = None


def measures(settings: Settings, split: Split | None) -> bool:
    """A benchmark: in each split."""
    return True


def prompts(settings: Settings, split: Split | None) -> list[Prompt]:
    """All prompts, for each split."""
    wanted = HubSet(settings.repo, None, "train", settings.revision)
    return [
        Prompt.of(
            item.text,
            kind="harmful",
            category=item.category,
            source="strongreject",
            origin=item.origin,
        )
        for item in set_items(settings.paths, wanted, FORMS)
    ]
