"""A run folder -> the model card of what was trained in it: README.md beside `model/`, and inside
`model/` and `adapter/`, which people upload.

    card = write_card(Path("runs/demo"))
    # of the last run whose model was trained here
    card = write_card(Path("runs/demo"), run="DeRTa")
    # of a single training, with an evaluation of its model or without results
    card = write_card(Path("runs/dpo-1a2b"), measured=Path("runs/evaluate-3c4d"))

The results stand in the card's metadata too, which the hub reads. A card is made to be published:
it holds no path of this machine and no setting that is not a number.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from overrefusal_po.evaluate.breakdowns import NO_ATTACK
from overrefusal_po.evaluate.metrics import RateName
from overrefusal_po.model.bundled import BUNDLED
from overrefusal_po.pairs.findings import WAIVED_FILE
from overrefusal_po.records import read_state, write_atomic
from overrefusal_po.report.summary import MeasuredRates, MeasuredRun, Summary, read_summary
from overrefusal_po.report.texts import one_line
from overrefusal_po.report.training import (
    method_words,
    public_method,
    stage_recipe,
    training_parts,
)
from overrefusal_po.report.waivers import PREFIX, waived_words

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

BUNDLED_HUB_NAMES = {f"bundled:{key}": bundled.hub_name for key, bundled in BUNDLED.items()}
"""{name in a recipe: name on the hub} of the bundled models."""

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
RATE_HEADS: dict[RateName, str] = {
    "harmful_refused": "harmful prompts refused",
    "benign_answered": "harmless but dangerous-sounding prompts answered",
    "f1": "F1 of the two",
    "ordinary_answered": "ordinary prompts answered",
    "degenerate": "degenerate responses",
    "harmful_not_unsafe": "harmful prompts without a response that the guard judges unsafe",
}
CORRECTED_HEADS: dict[RateName, str] = {
    "harmful_refused": "harmful prompts refused, corrected for the judge's errors",
    "benign_answered": "harmless prompts answered, corrected for the judge's errors",
}
UNDER_ATTACK: tuple[RateName, ...] = ("harmful_refused", "harmful_not_unsafe")


def write_card(folder: Path, *, run: str | None = None, measured: Path | None = None) -> Path:
    """README.md in the folder of the training, after the same text went into its `model/` and
    `adapter/`.

    Args:
        folder: the run folder of a pipeline, or of a single training.
        run: a pipeline's run whose model the card is of; None: the last one trained here.
        measured: the run folder of an evaluation of a single training's model.

    Raises:
        ValueError: nothing was trained here, or the evaluation is of another model.
    """
    if stage_recipe(folder).get("task") == "train":
        summary = None if measured is None else evaluation_of(folder, measured)
        return put_card(folder, card_text(summary, summary.runs[0] if summary else None, folder))
    if measured is not None:
        raise ValueError(
            f"{folder}: an evaluation beside the card is for the folder of a single training. A "
            "pipeline has its own evaluations."
        )
    return pipeline_card(folder, run)


def pipeline_card(folder: Path, run: str | None) -> Path:
    """The card of a pipeline's run; ValueError if it has no model that was trained here."""
    summary = read_summary(folder)
    stages = {
        found.name: stage
        for found in summary.runs
        if (stage := trained_stage(found, folder)) is not None
    }
    if (run is not None and run not in stages) or not stages:
        names = ", ".join(repr(name) for name in stages) or "none"
        raise ValueError(
            f"{folder}: {'no run' if run is None else f'run {run!r} has no model that'} was "
            "trained in this folder, so there is nothing to write a model card for. Runs with a "
            f"model of this folder: {names}."
        )
    name = run or list(stages)[-1]
    found = next(r for r in summary.runs if r.name == name)
    return put_card(stages[name], card_text(summary, found, stages[name]))


def put_card(stage: Path, text: str) -> Path:
    """Writes the card into `model/` and `adapter/` if they are there, and into the folder."""
    for name in ("model", "adapter"):
        if (stage / name).is_dir():
            write_atomic(stage / name / "README.md", text)
    return write_atomic(stage / "README.md", text)


def evaluation_of(stage: Path, measured: Path) -> Summary:
    """The summary of an evaluation; ValueError if it measured another model than the stage's."""
    summary = read_summary(measured)
    place = Path(summary.runs[0].model)
    status = measured / "status.json"
    inputs = read_state(status).get("inputs", {}) if status.is_file() else {}
    trained = stage / "status.json"
    key = read_state(trained).get("key") if trained.is_file() else None
    same = place.resolve() == (stage / "model").resolve()
    if len(summary.runs) != 1 or not (
        same or (key and inputs.get("model.model_name_or_path") == key)
    ):
        raise ValueError(
            f"{measured} measured {str(place)!r}, and the card is of {stage / 'model'}. Give the "
            "run folder of an evaluation of that model."
        )
    return summary


def trained_stage(run: MeasuredRun, folder: Path) -> Path | None:
    """The stage's folder whose `model/` the run measured; None if it measured another model."""
    path = Path(run.model)
    stage = folder / path.parent.name
    made_here = path.name == "model" and path.parent.name and (stage / "model").is_dir()
    return stage if made_here else None


def card_text(summary: Summary | None, run: MeasuredRun | None, stage: Path) -> str:
    """The card: metadata, then Markdown. Without `summary` and `run` it has no results."""
    from huggingface_hub import ModelCard, ModelCardData

    recipe = stage_recipe(stage)
    base = base_model(recipe, stage.parent)
    method = public_method(recipe)
    name = stage.resolve().name
    if summary and run:
        name = run.name if summary.title == run.name else f"{summary.title}, {run.name}"
    data = ModelCardData(
        base_model=base,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["overrefusal-po", "over-refusal", "safety", *([method] if method else [])],
        model_name=one_line(name),
        eval_results=[*run_results(run, summary)] if summary and run else None,
    )
    parts = [f"# {one_line(name)}", origin_words(recipe, base)]
    if summary and run:
        parts += result_parts(summary, run)
    else:
        parts += ["## Results", "Not measured yet. Refusals and answers may be worse than before."]
    if waived := [f"- {line}" for line in public_waivers(stage)]:
        parts += ["## Waived", "\n".join(waived)]
    parts += training_parts(stage)
    parts += [measured_words(summary)] if summary else []
    words = "\n".join(line for part in parts for line in (part, ""))
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n{words}", ignore_metadata_errors=False))


def run_results(run: MeasuredRun, summary: Summary) -> Iterator[EvalResult]:
    """Every rate of the run, of each set if there are several, and those under each attack."""
    everything = ", ".join(set_names(summary))
    sets = {name: rates for name, rates in run.sets.items() if len(run.sets) > 1}
    named: dict[str, MeasuredRates] = {everything: run, **sets}
    for name, rates in named.items():
        yield from results_on(name, rates, RATE_HEADS)
    for attack, rates in run.attacks.items():
        if attack != NO_ATTACK:
            yield from results_on(f"{everything}, attacked with {attack}", rates, UNDER_ATTACK)


def results_on(
    dataset: str, rates: MeasuredRates, names: Iterable[RateName]
) -> Iterator[EvalResult]:
    """One entry for each rate that was measured; interval, n and unscored count are its
    arguments."""
    from huggingface_hub import EvalResult

    kind = re.sub(r"[^\w.-]+", "-", one_line(dataset)).strip("-").lower() or "unknown"
    for name in names:
        value, ends = getattr(rates, name), rates.intervals.get(name)
        if value is not None:
            yield EvalResult(
                task_type="text-generation",
                dataset_type=kind,
                dataset_name=one_line(dataset),
                metric_type=name,
                metric_name=RATE_HEADS[name],
                metric_value=round(value, 4),
                metric_args={
                    "interval_95": None if ends is None else [round(end, 4) for end in ends],
                    "n": rates.n.get(name, 0),
                    "unscored": rates.unscored.get(name, 0),
                },
            )


def result_parts(summary: Summary, run: MeasuredRun) -> Iterator[str]:
    """The card's Markdown on what was measured, a part at a time."""
    yield "## Results"
    yield (
        f"Measured on {', '.join(set_names(summary))}; {public_text(summary.measured.engine)}. "
        f"Judge: {public_text(summary.measured.judge)}, {certificate_words(run)}. In brackets: "
        "95 % intervals."
    )
    yield "\n".join(rate_table(summary))
    if run.attacks:
        rate = "judged unsafe by the guard" if summary.measured.guard else "not refused"
        yield f"Under attack, the share of harmful prompts {rate}:"
        yield "\n".join(attack_table(run))
    yield from gate_words(run)
    yield "## Limits"
    yield "\n".join(f"- {line}" for line in limits(summary))


def origin_words(recipe: Mapping[str, object], base: str | None) -> str:
    """Two sentences on the model's base and its training."""
    method = method_words(recipe)
    return (
        f"Trained from {f'`{base}`' if base else 'another model'} by overrefusal-po"
        f"{f' with method {method}' if method else ''}, to answer what only sounds dangerous and "
        "still refuse what is harmful. The results show how far it does."
    )


def measured_words(summary: Summary) -> str:
    """When, on what and with which versions it was measured."""
    versions = ", ".join(
        f"{one_line(name)} {one_line(version)}" for name, version in summary.versions.items()
    )
    place = f"{one_line(summary.created)} on {one_line(summary.hardware)}"
    return f"Measured {place}{f' with {versions}' if versions else ''}."


def rate_table(summary: Summary) -> Iterator[str]:
    """A row for every run, a column for every rate: raw, and corrected if a certificate allows
    it."""
    columns = [
        name for name in RATE_HEADS if any(getattr(run, name) is not None for run in summary.runs)
    ]
    fixed = [
        name
        for name in CORRECTED_HEADS
        if any(run.corrected and getattr(run.corrected, name) for run in summary.runs)
    ]
    heads = [*(RATE_HEADS[name] for name in columns), *(CORRECTED_HEADS[name] for name in fixed)]
    yield f"| run | {' | '.join(heads)} |"
    yield "|---" * (1 + len(heads)) + "|"
    for run in summary.runs:
        cells = [rate_words(getattr(run, name), run.intervals.get(name)) for name in columns]
        cells += [corrected_words(run, name) for name in fixed]
        yield f"| {one_line(run.name)} | {' | '.join(cells)} |"


def corrected_words(run: MeasuredRun, name: RateName) -> str:
    """A corrected rate with its interval, or a dash."""
    rate = getattr(run.corrected, name) if run.corrected else None
    if rate is None:
        return rate_words(None, None)
    return rate_words(rate.value, None if rate.low is None else (rate.low, rate.high))


def attack_table(run: MeasuredRun) -> Iterator[str]:
    """A row for every attack."""
    yield "| attack | share | n |"
    yield "|---|---|---|"
    for attack, rates in run.attacks.items():
        guarded = rates.harmful_not_unsafe is not None
        name: RateName = "harmful_not_unsafe" if guarded else "harmful_refused"
        kept, ends = getattr(rates, name), rates.intervals.get(name)
        share = rate_words(None if kept is None else 1 - kept, ends and (1 - ends[1], 1 - ends[0]))
        yield f"| {attack_words(attack)} | {share} | {rates.n.get(name, 0)} |"


def attack_words(attack: str) -> str:
    """An attack's name for a table."""
    return "as asked" if attack == NO_ATTACK else one_line(attack)


def rate_words(value: float | None, ends: tuple[float, float] | None) -> str:
    """`0.62 [0.53, 0.71]`, or a dash."""
    if value is None:
        return "–"
    return f"{value:.2f}" if ends is None else f"{value:.2f} [{ends[0]:.2f}, {ends[1]:.2f}]"


def certificate_words(run: MeasuredRun) -> str:
    """What is known of the judge."""
    if run.certificate is None:
        return "uncertified (nobody has compared it with human labels for these rates)"
    labels, kappa = run.certificate.get("n", "some"), run.certificate.get("kappa", "–")
    return f"certified against {labels} human labels, κ {kappa}"


def gate_words(run: MeasuredRun) -> Iterator[str]:
    """The gate's result, if the run had a gate."""
    if run.gate is not None:
        yield "## Gate"
        yield "Passed." if run.gate.passed else "The gate failed:"
        if run.gate.failures:
            yield "\n".join(f"- {one_line(sentence)}" for sentence in run.gate.failures)


def limits(summary: Summary) -> Iterator[str]:
    """What a user has to know before they rely on the numbers."""
    if summary.measured.guard is None:
        yield "No guard model read the responses: refused is counted, harm is not judged."
    if not summary.measured.attacks:
        yield "No attack was run: nothing here says how the model behaves under one."
    if summary.measured.model_form:
        form = one_line(summary.measured.model_form)
        yield f"Measured with {form}; another form of the same training may differ."
    notes = (note for note in summary.measured.notes if not note.startswith(PREFIX))
    yield from (one_line(note) for note in notes if not looks_local(note))


def public_waivers(stage: Path) -> Iterator[str]:
    """What the trainings of a pipeline waived, or a single one, each reason without paths of this
    machine."""
    in_pipeline = (stage.parent / "summary.json").is_file()
    files = sorted(stage.parent.glob(f"*/{WAIVED_FILE}")) if in_pipeline else [stage / WAIVED_FILE]
    for file in filter(Path.is_file, files):
        for what, reason in waived_words(file):
            yield f"{one_line(what[:1].upper() + what[1:])}. Waived: {public_text(reason)}"


def set_names(summary: Summary) -> list[str]:
    """The sets' names; a user's file without its folders."""
    return [
        one_line(Path(name).name if looks_local(name) else name) for name in summary.measured.sets
    ]


def looks_local(text: str) -> bool:
    """Whether a text holds a path of somebody's machine."""
    return bool(
        re.search(r"(^|[\s'\"(:=])(/|~|\.{1,2}/|[A-Za-z]:\\)|\.(jsonl?|csv|parquet|txt)\b", text)
    )


def public_text(text: str) -> str:
    """A text as one line; "a local one" if it holds a path."""
    return "a local one" if looks_local(text) else one_line(text)


def base_model(recipe: Mapping[str, object], folder: Path) -> str | None:
    """The hub name from which the pipeline's training started, through all its stages; None if it
    has none."""
    for _ in range(20):  # stages form a row; a folder made by hand might form a ring
        model = recipe.get("model")
        name = str(model.get("model_name_or_path", "") if isinstance(model, Mapping) else "")
        if name.startswith("bundled:"):
            return BUNDLED_HUB_NAMES.get(name)
        path = Path(name)
        if path.name != "model" or not (folder / path.parent.name / "recipe.yaml").is_file():
            return name if HUB_NAME.fullmatch(name) and not path.exists() else None
        recipe = stage_recipe(folder / path.parent.name)
    return None
