"""WildJailbreak (Jiang et al., NeurIPS 2024, arXiv 2406.18510): prompts harmful and benign, plain
and dressed as jailbreaks.

    {name: wildjailbreak}
    # split train: 262k with answers; test: 2,210, no answers
    {name: wildjailbreak, types: [vanilla_benign, adversarial_benign]}
    {name: wildjailbreak, paths: [train.tsv]}

The four types are vanilla and adversarial, harmful and benign; the hub's eval set has the
adversarial ones only. The category of a prompt is its type. A jailbreak keeps its plain prompt as
`question`. Both count as one prompt in intervals, and when training and measured prompts are
separated. The reference is the set's completion: a refusal for harmful prompts, an answer for
benign ones, all from language models. From the hub: allenai/wildjailbreak, ODC-BY, gated (access is
granted at once to who accepts the AI2 Responsible Use Guidelines with their account).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

from overrefusal_po.records import Kind, Prompt, Split, content_id
from overrefusal_po.sources._hub import HubSet
from overrefusal_po.sources._rows import Form, Item, column_text, hub_parts, set_items

Type = Literal["vanilla_harmful", "vanilla_benign", "adversarial_harmful", "adversarial_benign"]
TYPES: tuple[Type, ...] = get_args(Type)
FORMS = (
    Form("data_type", None, ("vanilla", "adversarial", "completion")),
    Form("data_type", None, ("adversarial", "label")),
)
"""The columns of the train set and of the eval set. Which column holds the prompt depends on the
type."""

HUB_CONFIGS: dict[Split, str] = {"train": "train", "test": "eval"}
REVISION = "5ddc12a7894f842b0619b8e1c7ee496b198af009"
"""The last commit that is known of the hub's main branch; it took out the column `tactics`, which
is not read here."""


class Settings(BaseModel):
    """`types`: those to take. `paths`: local files of one split, in the hub's columns."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    types: tuple[Type, ...] = Field(default=TYPES, min_length=1)
    paths: tuple[str, ...] = ()
    repo: str = "allenai/wildjailbreak"
    revision: str | None = REVISION


def prompts(settings: Settings, split: Split | None) -> list[Prompt]:
    """The prompts of the types asked for; the train split has references."""
    return [
        prompt for part in hub_parts(split, settings.paths) for prompt in read_part(settings, part)
    ]


def read_part(settings: Settings, part: Split) -> Iterator[Prompt]:
    """The prompts of one of the hub's two sets."""
    wanted = HubSet(settings.repo, HUB_CONFIGS.get(part), "train", settings.revision, tabs=True)
    for item in set_items(settings.paths, wanted, FORMS):
        if item.text not in TYPES:
            raise ValueError(
                f"{item.place}, column data_type: the type is {item.text!r}; expected is one of "
                f"{', '.join(TYPES)}."
            )
        if item.text in settings.types:
            yield row_to_jailbreak(item, part)


def row_to_jailbreak(item: Item, part: Split) -> Prompt:
    """One row as a prompt; ValueError if the column that its type names is empty."""
    column, _, kind_name = item.text.partition("_")
    kind: Kind = "harmful" if kind_name == "harmful" else "benign"
    vanilla = item.row.get("vanilla") if column == "adversarial" else None
    return Prompt.of(
        column_text(item.row, column, item.place),
        kind=kind,
        category=item.text,
        source="wildjailbreak",
        split=part,
        reference=item.row.get("completion") or None,
        question=vanilla or None,
        original_id=content_id(kind, vanilla) if vanilla else None,
        origin=item.origin,
    )
