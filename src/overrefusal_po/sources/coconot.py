"""CoCoNot (Brahman et al., NeurIPS 2024, arXiv 2407.12043): requests not to comply with, and
contrasts to comply with.

    {name: coconot}
    # harmful originals and benign contrasts, the safety category
    {name: coconot, part: contrast, categories: all}    # all 379 contrasts
    {name: coconot, part: original, paths: [coconot_eval.jsonl]}

Of the originals only those with safety concerns are harmful. The others are incomplete,
unanswerable, or ask for something that a model cannot do: no refusal rate measures these reasons.
Their contrasts are still good benign prompts: `categories: all` takes them.

The split train gives the train parts: originals of the hub's train split, and as contrasts the
prompts of its 927 preference pairs. A prompt that stands in the evaluation parts too is left out,
if these come from the hub. Every other split, and none, gives the evaluation parts alone. From the
hub: allenai/coconot, licence ODC-BY, not gated.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, model_validator

from overrefusal_po.identity import bare_text
from overrefusal_po.records import Kind, Prompt, Split
from overrefusal_po.sources._hub import HubSet
from overrefusal_po.sources._rows import Form, set_items

logger = logging.getLogger(__name__)

CoconotPart = Literal["original", "contrast"]
PARTS: tuple[CoconotPart, ...] = ("original", "contrast")
KIND_OF_PART: dict[CoconotPart, Kind] = {"original": "harmful", "contrast": "benign"}
SAFETY = "Requests with safety concerns"
"""The one of CoCoNot's five categories that is about harm."""

FORMS = (Form("prompt", "category", ("subcategory",)), Form("prompt", "category"))
PAIR_FORMS = tuple(form._replace(also=(*form.also, "chosen")) for form in FORMS)
"""The train part of the contrasts is a set of pairs. So a file of its evaluation part is none."""


class Stored(NamedTuple):
    """Where the hub has the rows of a part, and in which forms."""

    config: str
    split: str
    forms: tuple[Form, ...]


TRAIN: dict[CoconotPart, Stored] = {
    "original": Stored("original", "train", FORMS),
    "contrast": Stored("pref", "train", PAIR_FORMS),
}
EVALUATION = {part: Stored(part, "test", FORMS) for part in PARTS}


class Settings(BaseModel):
    """`part`: which half. `categories`: for the contrasts. `paths`: local files of the one part
    named, and of the split asked for."""

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


def measures(settings: Settings, split: Split | None) -> bool:
    """The evaluation parts are for measuring."""
    return split != "train"


def prompts(settings: Settings, split: Split | None) -> list[Prompt]:
    """Harmful originals, then benign contrasts: the train parts for the split train, else the
    evaluation parts."""
    parts = PARTS if settings.part == "both" else (settings.part,)
    stored = TRAIN if split == "train" else EVALUATION
    found = [prompt for part in parts for prompt in read_part(settings, part, stored[part])]
    return found if split != "train" or settings.paths else not_evaluated(settings, found)


def not_evaluated(settings: Settings, found: list[Prompt]) -> list[Prompt]:
    """The train prompts whose words are not those of an evaluation prompt, of either part."""
    whole = settings.model_copy(update={"categories": "all"})
    measured = {
        bare_text(prompt.text)
        for part in PARTS
        for prompt in read_part(whole, part, EVALUATION[part])
    }
    kept = [prompt for prompt in found if bare_text(prompt.text) not in measured]
    if len(kept) < len(found):
        logger.info(
            "coconot: %d of %d train prompts stand in the evaluation parts too, and are left out",
            *(len(found) - len(kept), len(found)),
        )
    return kept


def read_part(settings: Settings, part: CoconotPart, stored: Stored) -> Iterator[Prompt]:
    """The prompts of one part whose category is asked for."""
    wanted = HubSet(settings.repo, stored.config, stored.split, settings.revision)
    for item in set_items(settings.paths, wanted, stored.forms):
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
            split="train" if stored == TRAIN[part] else None,
            origin=item.origin,
        )
