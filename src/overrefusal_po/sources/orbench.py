"""OR-Bench (Cui et al., ICML 2025, arXiv 2405.20947): prompts rewritten to look toxic while they
are not; and toxic ones.

    {name: orbench}
    # OR-Bench-Hard-1K: 1,319 prompts that many models refuse
    {name: orbench, config: or-bench-toxic}
    # 655 harmful prompts, so that safety is measured beside it
    {name: orbench, config: or-bench-80k}        # 80,000 prompts that Hard-1K was drawn from
    {name: orbench, paths: [or-bench-hard-1k.csv]}

The labels come from models, not from people, and those of Hard-1K are contested: `note` says so,
and whoever shows a number of Hard-1K shows the note. Hard and toxic are for evaluation only. The
80k may be trained on, but Hard-1K is a part of it: what is measured has to be taken out first. From
the hub: bench-llm/or-bench, licence CC-BY-4.0, not gated.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from overrefusal_po.records import Kind, Prompt, Split
from overrefusal_po.sources._hub import HubSet
from overrefusal_po.sources._rows import Form, set_items

Config = Literal["or-bench-80k", "or-bench-hard-1k", "or-bench-toxic"]
KIND_OF_CONFIG: dict[Config, Kind] = {
    "or-bench-80k": "benign",
    "or-bench-hard-1k": "benign",
    "or-bench-toxic": "harmful",
}
FORMS = (Form("prompt", "category"),)

CONTESTED = (
    "OR-Bench-Hard-1K: its labels are contested. In a human study of 134 of its prompts, half were "
    "rated toxic by most raters; a refusal here is not always wrong."
)
"""The study is reported in shared/data/SOURCES.md of this project; it is not by the authors of
OR-Bench."""

FROM_80K = (
    "OR-Bench-80K: labelled by models; OR-Bench-Hard-1K is a part of it, so that training on it "
    "spoils the latter."
)


class Settings(BaseModel):
    """`config`: which of the three sets. `paths`: local copies of it. `repo`, `revision`: the hub
    data set."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    config: Config = "or-bench-hard-1k"
    paths: tuple[str, ...] = ()
    repo: str = "bench-llm/or-bench"
    revision: str | None = None


def measures(settings: Settings, split: Split | None) -> bool:
    """All but the 80k are for measuring."""
    return settings.config != "or-bench-80k"


def prompts(settings: Settings, split: Split | None) -> list[Prompt]:
    """The prompts of one set, benign or (toxic) harmful, for each split."""
    wanted = HubSet(settings.repo, settings.config, "train", settings.revision)
    return [
        Prompt.of(
            item.text,
            kind=KIND_OF_CONFIG[settings.config],
            category=item.category,
            source=settings.config,
            origin=item.origin,
        )
        for item in set_items(settings.paths, wanted, FORMS)
    ]


def note(settings: Settings) -> str | None:
    """What a reader of a number from this set has to know; None if there is nothing."""
    return {"or-bench-hard-1k": CONTESTED, "or-bench-80k": FROM_80K}.get(settings.config)
