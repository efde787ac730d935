"""XSTest (Roettger et al., NAACL 2024, arXiv 2308.01263): 250 safe prompts that sound unsafe, 200
unsafe contrasts.

    {name: xstest}                                      # from the hub: walledai/XSTest (gated)
    {name: xstest, paths: [xstest_prompts.csv]}         # the authors' file
    {name: xstest, paths: [safe.jsonl, unsafe.jsonl]}
    # any local files with prompt, label, type or category

A benchmark: for evaluation only, never for training. It has no splits. Licence CC-BY-4.0.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from overrefusal_po.records import Prompt, Split
from overrefusal_po.sources._hub import HubSet
from overrefusal_po.sources._prompt_rows import row_to_prompt
from overrefusal_po.sources._rows import Form, set_items

FORMS = (
    Form("prompt", "type", ("label",)),
    Form("prompt", "category", ("label",)),
    Form("prompt", None, ("label",)),
    Form("prompt", "type"),
)
"""The hub's columns, those of local copies, and those of the authors' second version, which has no
label."""


class Settings(BaseModel):
    """`paths`: local files instead of the hub. `repo`, `revision`: the hub data set."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    paths: tuple[str, ...] = ()
    repo: str = "walledai/XSTest"
    revision: str | None = None


def measures(settings: Settings, split: Split | None) -> bool:
    """A benchmark: in each split."""
    return True


def prompts(settings: Settings, split: Split | None) -> list[Prompt]:
    """All 450 prompts, for each split."""
    wanted = HubSet(settings.repo, None, "test", settings.revision)
    found = []
    for item in set_items(settings.paths, wanted, FORMS):
        contrast = item.category.startswith("contrast")
        # responses that a file may carry are left out: a reference is not part of the benchmark
        row = {"prompt": item.text, "category": item.category, "contrast": contrast}
        label = item.row.get("label", "unsafe" if contrast else "safe")
        prompt = row_to_prompt({**row, "label": label}, item.place, None, source="xstest")
        found.append(prompt.model_copy(update={"origin": item.origin}))
    return found
