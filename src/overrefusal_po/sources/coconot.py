"""CoCoNot (Brahman et al., NeurIPS 2024, arXiv 2407.12043): requests not to comply with, and
contrasts to comply with.

    {name: coconot}
    # harmful originals and benign contrasts, the safety category
    {name: coconot, part: contrast, categories: all}    # all 379 contrasts
    {name: coconot, part: original, paths: [coconot_eval.jsonl]}

Of the originals only those with safety concerns are harmful. The others are incomplete,
unanswerable, or ask for something that a model cannot do: no refusal rate measures these reasons.
Their contrasts are still good benign prompts: `categories: all` takes them. Evaluation parts only,
never for training. From the hub: allenai/coconot, licence ODC-BY, not gated.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import BaseModel, ConfigDict, model_validator

from overrefusal_po.records import Kind, Prompt, Split
from overrefusal_po.sources._hub import HubSet
from overrefusal_po.sources._rows import Form, never_train, set_items

CoconotPart = Literal["original", "contrast"]
KIND_OF_PART: dict[CoconotPart, Kind] = {"original": "harmful", "contrast": "benign"}
SAFETY = "Requests with safety concerns"
"""The one of CoCoNot's five categories that is about harm."""

FORMS = (Form("prompt", "category", ("subcategory",)), Form("prompt", "category"))


class Settings(BaseModel):
    """`part`: which half. `categories`: for the contrasts. `paths`: local files of the one part
    named."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    part: CoconotPart | Literal["both"] = "both"
    categories: Literal["safety", "all"] = "safety"
    paths: tuple[str, ...] = ()
    repo: str = "allenai/coconot"
    revision: str | None = None

    @model_validator(mode="after")
    def check_paths(self) -> Settings:
        """A file does not say which part it is."""
        if self.paths and self.part == "both":
            raise ValueError(
                "local paths need `part: original` or `part: contrast`, since the files do not say "
                "which"
            )
        return self


def prompts(settings: Settings, split: Split | None) -> list[Prompt]:
    """Harmful originals, then benign contrasts; the train split is an error."""
    never_train("CoCoNot (its evaluation parts)", split)
    parts: list[CoconotPart] = (
        ["original", "contrast"] if settings.part == "both" else [settings.part]
    )
    return [prompt for part in parts for prompt in read_part(settings, part)]


def read_part(settings: Settings, part: CoconotPart) -> Iterator[Prompt]:
    """The prompts of one part whose category is asked for."""
    wanted = HubSet(settings.repo, part, "test", settings.revision)
    for item in set_items(settings.paths, wanted, FORMS):
        if not item.category.startswith(SAFETY) and (
            part == "original" or settings.categories == "safety"
        ):
            continue
        category = " / ".join(
            str(name) for name in (item.category, item.row.get("subcategory")) if name
        )
        yield Prompt.of(
            item.text,
            kind=KIND_OF_PART[part],
            category=category,
            source=f"coconot-{part}",
            origin=item.origin,
        )
