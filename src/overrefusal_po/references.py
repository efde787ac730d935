"""`@stage.output` in a pipeline: what it may name, and which path it stands for.

    check_reference("@dpo.model", stages, "stage after: model.model_name_or_path")
    linked_stage(stages["after"], Path("runs/porover"))     # runs/porover/dpo/model

A reference to a stage that does not run, because a round had nothing left to correct, is one to the
same stage of the round before.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

from overrefusal_po.recipe.overrides import dotted, set_dotted
from overrefusal_po.recipe.report import Report
from overrefusal_po.recipe.rounds import Repeats, in_round
from overrefusal_po.recipe.schema import TrainRecipe
from overrefusal_po.recipe.words import nearest
from overrefusal_po.report.pipeline_summary import StageRecipe
from overrefusal_po.report.rounds_part import nothing_left

OUTPUTS = {
    "pairs": ("curate", "pairs.jsonl"),
    "sft": ("curate", "sft.jsonl"),
    "model": ("train", "model"),
    "harmful": ("train", "student_harmful.jsonl"),
    "triples": ("train", "data.jsonl"),
    "start": ("train", "hold_start.jsonl"),
    "outcomes": ("evaluate", "outcomes.jsonl"),
}
"""What a later stage may name: {output: (task that makes it, its place in the stage's folder)}."""

NONE_LEFT_OUT: Mapping[str, str] = MappingProxyType({})


def references(body: StageRecipe) -> Iterator[tuple[str, str]]:
    """(dotted key, "@stage.output") of every reference in a stage."""
    for key, value in dotted(body.model_dump(mode="json")):
        if isinstance(value, str) and value.startswith("@"):
            yield key, value


def check_reference(value: str, earlier: Mapping[str, StageRecipe], where: str) -> None:
    """Raises ValueError if `value` does not name an output of an earlier stage."""
    stage, _, output = value[1:].partition(".")
    makes = outputs(earlier)
    if value not in makes:
        allowed = ", ".join(makes) or "nothing (no earlier stage makes anything)"
        raise ValueError(
            f"{where} is {value!r}, but there is no output {output!r} of a stage {stage!r}; "
            f"allowed: {allowed}.{nearest(value, makes)}"
        )


def outputs(stages: Mapping[str, StageRecipe]) -> list[str]:
    """What these stages make, as a later stage names it."""
    return sorted(
        f"@{name}.{out}"
        for name, body in stages.items()
        for out, (task, _) in OUTPUTS.items()
        if body.task == task and (not isinstance(body, TrainRecipe) or makes(body, out))
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


def makes(body: TrainRecipe, output: str) -> bool:
    """Whether this training makes that output of trainings."""
    if output == "triples":
        return body.learns_triples
    return output != "start" or body.hold is not None


def linked_stage(
    body: StageRecipe, folder: Path, left_out: Mapping[str, str] = NONE_LEFT_OUT
) -> StageRecipe:
    """The stage with every "@stage.output" replaced by the path in the pipeline's folder.

    `left_out`: {stage that does not run: the one whose outputs are read in its place}.
    """
    values = body.model_dump(mode="json")
    for key, value in references(body):
        stage, _, output = value[1:].partition(".")
        place = folder / left_out.get(stage, stage) / OUTPUTS[output][1]
        set_dotted(values, key, str(place))
    return type(body).model_validate(values)


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
