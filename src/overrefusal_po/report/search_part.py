"""A run folder with search.jsonl -> every trial: for its model card, for summary.json and for the
report's page.

    for part in search_parts(Path("runs/dpo-1a2b")):
        print(part)
    entries = search_entries(Path("runs/porover"))
    # of every stage of a pipeline that searched
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypedDict

from pydantic import BaseModel

from overrefusal_po.recipe.search import settings_words
from overrefusal_po.recipe.two_sided import start_of
from overrefusal_po.records import read_objects
from overrefusal_po.report.panel_part import READ_CONFIG
from overrefusal_po.report.texts import one_line
from overrefusal_po.report.training import public_value, search_summary, section, stage_recipe

Values = Mapping[str, object]

SettingWords = Callable[[Values], str]

HEADS = (
    "trial",
    "settings",
    "holds",
    "harmful prompts refused",
    "harmless prompts answered",
    "bias",
    "first-token AUC",
    "seconds",
)


class SearchEntry(TypedDict):
    """A search in summary.json. `why`: why the trial was kept; `start_of`: ` of dpo` if its rates
    are compared with the start policy of that stage; `trials`: the rows of search.jsonl."""

    stage: str
    why: str
    start_of: str
    trials: list[dict[str, object]]


class SearchPart(BaseModel):
    """A search of a pipeline: its stage, why a trial was kept, and the rows of its search.jsonl."""

    model_config = READ_CONFIG
    stage: str
    why: str
    start_of: str = ""
    trials: tuple[dict[str, object], ...]

    @property
    def cells(self) -> list[list[str]]:
        """The page's table: the start policy and every trial, with all values."""
        return [*table_cells(self.trials, settings_words, self.start_of)]


def search_entries(folder: Path) -> list[SearchEntry]:
    """The searches of a pipeline's stages."""
    return [
        {
            "stage": stage.name,
            "why": str(chosen.get("why")),
            "start_of": start_of(given_start(stage)),
            "trials": trial_rows(stage),
        }
        for stage in sorted(file.parent for file in folder.glob("*/search.jsonl"))
        if (chosen := search_summary(stage))
    ]


def given_start(stage: Path) -> str | None:
    """The `hold.start` of a stage's recipe."""
    found = section(stage_recipe(stage), "hold").get("start")
    return found if isinstance(found, str) else None


def trial_rows(stage: Path) -> list[dict[str, object]]:
    """The rows of search.jsonl."""
    return [row for _, row in read_objects(stage / "search.jsonl")]


def search_parts(stage: Path) -> Iterator[str]:
    """The card's Markdown on a search, a part at a time; nothing if the training was none."""
    chosen = search_summary(stage)
    if not chosen or not (stage / "search.jsonl").is_file():
        return
    yield "### Search"
    yield (
        f"{one_line(str(chosen.get('why')))}. Each trial was a training from the same start. "
        "Measured on the dev prompts of `hold`, by which the trial was chosen: on other prompts "
        "it may do less well."
    )
    # a folder's name may be private
    of = " of an earlier training" if given_start(stage) else ""
    trials = table_cells(trial_rows(stage), setting_words, of)
    rows = [list(HEADS), ["---"] * len(HEADS), *trials]
    yield "\n".join(f"| {' | '.join(cells)} |" for cells in rows)


def table_cells(rows: Sequence[Values], words: SettingWords, of: str) -> Iterator[list[str]]:
    """The cells of the start policy (` of dpo`, if it is not the training's own), if a trial has
    it, and of every trial."""
    start = next((row["start"] for row in rows if isinstance(row.get("start"), list)), None)
    if isinstance(start, list):
        refused, answered = map(number, start)
        yield [f"start{of}", "–", "–", refused, answered, "–", "–", "–"]
    for row in rows:
        yield trial_cells(row, words)


def trial_cells(row: Values, words: SettingWords) -> list[str]:
    """The cells of one trial."""
    settings = row.get("settings")
    shown = words(settings) if isinstance(settings, Mapping) else "–"
    held = "yes" if row.get("held") else "no"
    rates = [number(row.get(key)) for key in ("harmful_refused", "benign_answered")]
    more = [number(row.get("bias"), "+.2f"), number(row.get("first_token_auc"))]
    first, last = number(row.get("number"), "d"), number(row.get("seconds"), ".0f")
    return [first, shown, held, *rates, *more, last]


def setting_words(settings: Values) -> str:
    """`trainer.beta 0.3`, each value as far as it may be published."""
    words = []
    for key, value in settings.items():
        known = public_value(key.rpartition(".")[2], value)
        shown = json.dumps(known) if known is not None or value is None else "of the recipe"
        words.append(one_line(f"{key} {shown}"))
    return ", ".join(words)


def number(value: object, form: str = ".2f") -> str:
    """A number, or a dash."""
    return format(value, form) if isinstance(value, int | float) else "–"
