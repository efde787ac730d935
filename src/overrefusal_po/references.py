"""`@stage.output` in a pipeline: what it may name, and which path it stands for.

    check_reference("@dpo.model", stages, "stage after: model.model_name_or_path")
    linked_stage(stages["after"], Path("runs/porover"))     # runs/porover/dpo/model

A reference to a stage that does not run, because a round had nothing left to correct, is one to the
same stage of the round before. What reads a remedy is left out if the fit kept none.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from overrefusal_po.evaluate.remedy_checks import check_remedy_form
from overrefusal_po.plugins import find_plug
from overrefusal_po.recipe.fit import FitRecipe
from overrefusal_po.recipe.overrides import nested_texts
from overrefusal_po.recipe.report import Report
from overrefusal_po.recipe.rounds import Repeats, in_round
from overrefusal_po.recipe.schema import EvaluateRecipe, PipelineRecipe, TrainRecipe
from overrefusal_po.recipe.words import nearest
from overrefusal_po.records import read_state
from overrefusal_po.remedies import form_of
from overrefusal_po.report.pipeline_summary import StageRecipe
from overrefusal_po.report.remedies_made import Stages
from overrefusal_po.report.rounds_part import nothing_left

OUTPUTS = {
    "pairs": (("curate",), "pairs.jsonl"),
    "sft": (("curate",), "sft.jsonl"),
    "model": (("train", "fit"), "model"),
    "adapter": (("train", "fit"), "adapter"),
    "remedy": (("fit",), "remedy"),
    "harmful": (("train",), "student_harmful.jsonl"),
    "triples": (("train",), "data.jsonl"),
    "start": (("train",), "hold_start.jsonl"),
    "outcomes": (("evaluate",), "outcomes.jsonl"),
}
"""What a later stage may name: {output: (tasks that make it, its place in the stage's folder)}."""

FITTED = "fitted"
"""The status of a fit that kept a remedy."""

NONE_LEFT_OUT: Mapping[str, str] = MappingProxyType({})


def references(body: StageRecipe) -> Iterator[tuple[str, str]]:
    """(dotted key, "@stage.output") of every reference in a stage, also in its lists."""
    for key, value in nested_texts(body.model_dump(mode="json")):
        if value.startswith("@"):
            yield key, value


def check_reference(value: str, earlier: Mapping[str, StageRecipe], where: str) -> None:
    """Raises ValueError if `value` does not name an output of an earlier stage."""
    stage, _, output = value[1:].partition(".")
    makes = outputs(earlier)
    if value not in makes:
        body = earlier.get(stage)
        if isinstance(body, FitRecipe) and output in OUTPUTS and "fit" in OUTPUTS[output][0]:
            raise ValueError(
                f"{where} is {value!r}, but the remedy of stage {stage} leaves no plain weights: "
                "it works while a model runs. Give the model that it was fitted on, and beside it "
                f'remedy: "@{stage}.remedy".'
            )
        allowed = ", ".join(makes) or "nothing (no earlier stage makes anything)"
        raise ValueError(
            f"{where} is {value!r}, but there is no output {output!r} of a stage {stage!r}; "
            f"allowed: {allowed}.{nearest(value, makes)}"
        )


def check_remedy_read(
    body: StageRecipe, earlier: Mapping[str, StageRecipe], above: str = ""
) -> None:
    """Raises ValueError for an evaluation that cannot be made with the remedy of an earlier stage,
    as far as that stage's recipe says what form it has."""
    stage, _, output = str(body.model.get("remedy") or "").partition(".")
    fit = earlier.get(stage[1:]) if stage.startswith("@") and output == "remedy" else None
    if isinstance(body, EvaluateRecipe) and isinstance(fit, FitRecipe):
        try:
            check_remedy_form(body, form_of(*find_plug("remedies", fit.remedy)), f"{stage}.model")
        except ValueError as error:
            raise ValueError(f"{above}{error}") from None


def outputs(stages: Mapping[str, StageRecipe]) -> list[str]:
    """What these stages make, as a later stage names it."""
    return sorted(
        f"@{name}.{out}"
        for name, body in stages.items()
        for out, (tasks, _) in OUTPUTS.items()
        if body.task in tasks and makes(body, out)
    )


def check_report(report: Report | None, stages: Mapping[str, StageRecipe], where: str) -> None:
    """Raises ValueError if a pipeline's `report` names a stage that does not measure."""
    measured = [name for name, body in stages.items() if body.task == "evaluate"]
    for name in (report.baseline, *report.rivals) if report is not None else ():
        if name not in measured:
            raise ValueError(
                f"{where}: report names the stage {name!r}, which is no evaluate stage. Allowed: "
                f"{', '.join(measured) or 'none'}.{nearest(name, measured)}"
            )


def makes(body: StageRecipe, output: str) -> bool:
    """Whether this stage may make that output of its task."""
    if isinstance(body, FitRecipe):
        form = form_of(*find_plug("remedies", body.remedy))
        return output == "remedy" or form in (None, "weights")
    if not isinstance(body, TrainRecipe):
        return True
    if output == "triples":
        return body.learns_triples
    if output == "adapter":
        return bool(body.model.get("use_peft"))
    return output != "start" or body.hold is not None


def linked_stage(
    body: StageRecipe, folder: Path, left_out: Mapping[str, str] = NONE_LEFT_OUT
) -> StageRecipe:
    """The stage with every "@stage.output" replaced by the path in the pipeline's folder.

    `left_out`: {stage that does not run: the one whose outputs are read in its place}.
    """

    # Any: a part of a recipe as plain data
    def linked(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: linked(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [linked(inner) for inner in value]
        if not (isinstance(value, str) and value.startswith("@")):
            return value
        return str(place_of(value, folder, left_out))

    return type(body).model_validate(linked(body.model_dump(mode="json")))


def place_of(value: str, folder: Path, left_out: Mapping[str, str] = NONE_LEFT_OUT) -> Path:
    """The path that "@stage.output" stands for."""
    stage, _, output = value[1:].partition(".")
    return folder / left_out.get(stage, stage) / OUTPUTS[output][1]


def stages_left_out(repeats: Repeats, folder: Path) -> dict[str, str]:
    """{stage that does not run: the one in its place}, as far as the pipeline's folder says it.

    A curation of a later round may find nothing left to correct. Then what follows it in its round
    does not run, nor does any further round; the round before stands for them.
    """
    for number in range(2, repeats.rounds + 1):
        for at, stage in enumerate(repeats.stages, 1):
            if nothing_left(folder / in_round(stage, number)):
                rest = [(first, number) for first in repeats.stages[at:]]
                further = range(number + 1, repeats.rounds + 1)
                rest += [(first, later) for later in further for first in repeats.stages]
                return {in_round(first, n): in_round(first, number - 1) for first, n in rest}
    return {}


def stages_without_remedy(
    stages: Mapping[str, StageRecipe], folder: Path, left_out: Mapping[str, str] = NONE_LEFT_OUT
) -> dict[str, str]:
    """{stage that does not run: why}, as far as the pipeline's folder says it: those that read the
    output of a fit that kept no remedy, and those that read theirs.

    `left_out` as in `linked_stage`. ValueError if a fit kept a remedy, and not in the form that is
    read.
    """
    found: dict[str, str] = {}
    for name, body in stages.items():
        for _, value in references(body) if name not in left_out else ():
            given = value[1:].partition(".")[0]
            stage = left_out.get(given, given)
            if stage in found:
                found[name] = f"stage {stage} did not run"
            elif isinstance(stages.get(stage), FitRecipe):
                if ended := without_remedy(folder / stage):
                    found[name] = f"stage {stage} kept no remedy ({ended})"
                elif is_fitted(folder / stage) and not place_of(value, folder, left_out).exists():
                    raise ValueError(
                        f"stage {name} reads {value}, but the remedy that stage {stage} kept "
                        "leaves no plain weights. Give the model that it was fitted on, and beside "
                        f'it remedy: "@{stage}.remedy".'
                    )
    return found


def stages_not_run(
    body: PipelineRecipe,
    stages: Mapping[str, StageRecipe],
    folder: Path,
    left_out: Mapping[str, str] = NONE_LEFT_OUT,
) -> dict[str, str]:
    """{stage that does not run: why}: those without a remedy (`stages_without_remedy`), and all but
    the baseline behind a fit that says that the untouched model does not over-refuse."""
    found = stages_without_remedy(stages, folder, left_out)
    names = list(stages)
    if body.report is not None and body.report.needs_overrefusal:
        baseline = body.report.baseline
        for fit in Stages(folder, stages).healthy(baseline)[:1]:
            for name in names[names.index(fit["stage"]) + 1 :]:
                if name not in left_out and name != baseline:
                    found[name] = f"stage {fit['stage']} says that there is nothing to remedy"
    return found


def fit_status(folder: Path) -> str:
    """How the fit in a stage's folder ended; "" if it has not."""
    file = folder / "summary.json"
    return str(read_state(file).get("status", "")) if file.is_file() else ""


def without_remedy(folder: Path) -> str:
    """How a fit ended that kept no remedy; "" for others."""
    ended = fit_status(folder)
    return "" if ended == FITTED else ended


def is_fitted(folder: Path) -> bool:
    """Whether the fit in a stage's folder kept a remedy."""
    return fit_status(folder) == FITTED
