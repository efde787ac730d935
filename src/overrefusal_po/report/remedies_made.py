"""A run -> what made its model, how a fit ended, and how the model is served.

stages = Stages(folder, bodies)            # of a pipeline
stages.makers("steer_after")               # ["steer"]
served(folder, "before", "steer_after")    # "hooks"
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, TypedDict

from pydantic import BaseModel

from overrefusal_po.evaluate.speed import SECONDS, TOKENS
from overrefusal_po.recipe.overrides import dotted, nested_texts
from overrefusal_po.records import read_state
from overrefusal_po.run.folder import written_recipe

SCALAR = (str, int, float, bool)

NOT_ALWAYS = ("first_token_texts_seconds", "tamper_seconds")
"""Seconds in a manifest that belong to what only some evaluations measure."""

FIT_KEYS = {"status", "words", "remedy", "candidates"}
"""What summary.json of a stage `fit` has."""

NOTHING = "nothing to remedy"
"""How a fit ends on a model that does not over-refuse."""

DEV_RATES = ("harmful_refused", "benign_answered", "ordinary_answered", "degenerate", "perplexity")
"""What was measured of each candidate."""

Served = Literal["weights", "hooks", "logits", "streams", "prompt", "same"]
"""How a run's model can be served; `prompt`: a system prompt; `same`: as the untouched model."""

# Any: the recipe of a stage and remedy.json, as JSON holds them
Values = Mapping[str, Any]


class FitEntry(TypedDict):
    """How a stage `fit` ended, from its summary.json. `dev`: the candidates as they were measured
    on the dev prompts; `facts`: numbers and texts that the remedy says of the kept one."""

    stage: str
    name: str
    status: str
    words: str
    strength: float | None
    facts: dict[str, object]
    dev: list[dict[str, object]]


class Made(Protocol):
    """What a table has to know of its runs beside their metrics. A stage stands for a run folder:
    `folder` / stage."""

    @property
    def folder(self) -> Path:
        """Where the run folders are."""

    def makers(self, stage: str) -> list[str]:
        """The stages behind a stage's model, the first one first. Evaluations make no model."""

    def fits(self) -> list[str]:
        """The stages that may be fits, also those that did not run."""

    def measured(self) -> set[str]:
        """The stages that measure, also those that were left out."""

    def healthy(self, baseline: str) -> list[FitEntry]:
        """The fits that say that the untouched model does not over-refuse, the first one first.
        None if another fit found that it does. What a fit says of another model, or of one that is
        asked otherwise, does not count."""


class Stages(NamedTuple):
    """A pipeline's folder and the recipes of its stages."""

    folder: Path
    bodies: Mapping[str, BaseModel]

    def makers(self, stage: str) -> list[str]:
        """The stages behind a stage's model, the first one first. Evaluations make no model."""
        found: list[str] = []
        for name in self.named_by(stage):
            found += [*self.makers(name), name]
        return list(dict.fromkeys(found))

    def named_by(self, stage: str) -> Iterator[str]:
        """The stages whose outputs a stage reads, without evaluations. What an evaluation reads
        beside its model (a gate's baseline) makes nothing."""
        values = self.values(stage)
        read = values.get("model") if values.get("task") == "evaluate" else values
        for _, text in nested_texts(read):
            name = text[1:].partition(".")[0]
            known = text.startswith("@") and name in self.bodies
            if known and self.values(name).get("task") != "evaluate":
                yield name

    def fits(self) -> list[str]:
        """All stages: what is no fit has no entry."""
        return list(self.bodies)

    def measured(self) -> set[str]:
        """The stages that measure, also those that were left out."""
        return {stage for stage in self.bodies if self.values(stage).get("task") == "evaluate"}

    def values(self, stage: str) -> dict[str, Any]:
        """A stage's recipe, "@stage.output" left in place."""
        return self.bodies[stage].model_dump(mode="json") if stage in self.bodies else {}

    def healthy(self, baseline: str) -> list[FitEntry]:
        """See `Made`."""
        entries = [one for stage in self.bodies for one in fit_entries(self.folder, stage)]
        wanted = self.asked_model(baseline)
        known = [one for one in entries if self.asked_model(one["stage"]) == wanted]
        return known if all(one["status"] == NOTHING for one in known) else []

    def asked_model(self, stage: str) -> list[object]:
        """Which model a stage asks, and how its conversations are rendered."""
        values = self.values(stage)
        model = values.get("model") or {}
        named = [model.get(key) for key in ("model_name_or_path", "model_revision")]
        return [*named, values.get("chat")]


def run_seconds(folder: Path, stage: str) -> float | None:
    """How long a stage ran, without what other runs need not have: its texts behind other first
    tokens, and its tamper test. None if that is not known: a stage that was stopped and went on
    lost the time of a killed process, and loaded its weights twice."""
    file, manifest = (folder / stage / name for name in ("status.json", "manifest.json"))
    status = read_state(file) if file.is_file() else {}
    known = read_state(manifest) if manifest.is_file() else {}
    found = status.get("seconds")
    if not isinstance(found, int | float) or status.get("sittings", 1) > 1:
        return None
    return max(0.0, found - sum(float(known.get(key, 0)) for key in NOT_ALWAYS))


class Speed(NamedTuple):
    """How fast a run's model answered, in tokens a second; or why that is not known."""

    value: float | None
    why: str = ""
    hardware: str = ""


def speed(folder: Path, stage: str) -> Speed:
    """How fast the model of a stage answered, from the stage's manifest. Not known of a stage that
    was stopped and went on: the responses of a killed process have no time."""
    files = (folder / stage / name for name in ("status.json", "manifest.json"))
    status, known = (read_state(file) if file.is_file() else {} for file in files)
    if status.get("sittings", 1) > 1:
        return Speed(None, "stopped and went on")
    tokens, seconds = known.get(TOKENS), known.get(SECONDS)
    if not tokens or not seconds:
        return Speed(None, "not recorded")
    return Speed(tokens / seconds, hardware=str(known.get("hardware", "")))


def speed_ratio(before: Speed, after: Speed) -> tuple[float | None, str]:
    """(the tokens a second of a run as a multiple of those of the untouched model, "") or (None,
    why it is not known)."""
    if before.value is None:
        return None, f"the untouched model: {before.why}"
    if after.value is None:
        return None, after.why
    if before.hardware != after.hardware:
        return None, "on other hardware than the untouched model"
    return after.value / before.value, ""


def fit_seconds(folder: Path, makers: Sequence[str]) -> float | None:
    """How long the stages ran that made a model; None if there are none, or if it is not known of
    one. A stage that did not run took no time."""
    ran = [stage for stage in makers if (folder / stage / "status.json").is_file()]
    known = [run_seconds(folder, stage) for stage in ran]
    if not known or None in known:
        return None
    return round(sum(seconds for seconds in known if seconds is not None), 1)


def served(folder: Path, before: str, after: str) -> Served:
    """How the model of the stage `after` can be served, from the recipes in both folders."""
    old, new = (written_recipe(folder / stage) for stage in (before, after))
    (base, model), (said, says) = (
        [part if isinstance(part := recipe.get(key), dict) else {} for recipe in (old, new)]
        for key in ("model", "chat")
    )
    if remedy := model.get("remedy"):
        file = Path(str(remedy)) / "remedy.json"
        form = read_state(file).get("form") if file.is_file() else None
        return form if form in ("weights", "logits", "streams") else "hooks"
    if model.get("model_name_or_path") != base.get("model_name_or_path"):
        return "weights"
    return "prompt" if said.get("system_prompt") != says.get("system_prompt") else "same"


def fit_entries(folder: Path, stage: str) -> Iterator[FitEntry]:
    """How a stage `fit` ended; nothing for another stage, or one that is not done."""
    file = folder / stage / "summary.json"
    known = read_state(file) if file.is_file() else {}
    if not known.keys() >= FIT_KEYS:
        return
    rows = known["candidates"].values()
    yield {
        "stage": stage,
        "name": str(known["remedy"]),
        "status": str(known["status"]),
        "words": str(known["words"]),
        "strength": known.get("strength"),
        "facts": scalars(known.get("facts") or {}),
        "dev": [candidate(row, chosen=row["number"] == known.get("chosen")) for row in rows],
    }


def candidate(row: Values, *, chosen: bool) -> dict[str, object]:
    """A row of the candidates' table."""
    rates = {name: row["rates"].get(name) for name in DEV_RATES}
    passed = (row.get("facts") or {}).get("gate_harmful_let_through")
    # candidates of one strength differ by their gate
    gate = {} if passed is None else {"gate lets harmful through": passed}
    return {"number": row["number"], "strength": row["strength"], **gate, **rates, "kept": chosen}


def scalars(values: Values) -> dict[str, object]:
    """The numbers and texts among some values; those of a mapping in it under `key.inner`."""
    return {key: value for key, value in dotted(dict(values)) if isinstance(value, SCALAR)}
