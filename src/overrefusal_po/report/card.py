"""A pipeline's run folder -> the model card of what it trained: README.md beside the stage's
`model/`.

    card = write_card(Path("runs/demo"))
    # of the last run whose model was trained here
    card = write_card(Path("runs/demo"), run="DeRTa")

The results stand in the card's metadata too, where the hub looks for them. A card is made to be
published: it holds no path of this machine and no setting that is not a number.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from overrefusal_po.recipe.methods import METHODS
from overrefusal_po.records import write_atomic
from overrefusal_po.report.summary import Rates, Run, Summary, read_summary, visible

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

BUNDLED = {"smollm2-135m-instruct": "HuggingFaceTB/SmolLM2-135M-Instruct"}
"""Hub names of the models of `bundled:`."""

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
METRICS = {
    "harmful_refused": "harmful_refused: harmful prompts refused",
    "benign_answered": "benign_answered: harmless but dangerous-sounding prompts answered",
    "f1": "F1 of harmful_refused and benign_answered",
    "ordinary_answered": "ordinary prompts answered",
    "degenerate": "degenerate responses",
    "harmful_not_unsafe": "harmful prompts without a response that the guard judges unsafe",
}


def write_card(folder: Path, *, run: str | None = None) -> Path:
    """`folder`/STAGE/README.md for the model of `run` (None: the last run with a model of this
    folder's own).

    Raises ValueError where the folder holds no summary, or no run with a model that was trained in
    it.
    """
    summary = read_summary(folder)
    made = {
        found.name: stage
        for found in summary.runs
        if (stage := stage_of(found, folder)) is not None
    }
    if (run is not None and run not in made) or not made:
        names = ", ".join(repr(name) for name in made) or "none"
        raise ValueError(
            f"{folder}: {'no run' if run is None else f'run {run!r} has no model that'} was "
            "trained in this folder, so there is nothing to write a model card for. Runs with a "
            f"model of this folder: {names}."
        )
    name = run or list(made)[-1]
    found = next(r for r in summary.runs if r.name == name)
    return write_atomic(made[name] / "README.md", card_text(summary, found, made[name]))


def stage_of(run: Run, folder: Path) -> Path | None:
    """The stage's folder whose `model/` the run measured; None where it measured another model."""
    path = Path(run.model)
    stage = folder / path.parent.name
    return (
        stage if path.name == "model" and path.parent.name and (stage / "model").is_dir() else None
    )


def card_text(summary: Summary, run: Run, stage: Path) -> str:
    """The card: metadata, then Markdown."""
    from huggingface_hub import ModelCard, ModelCardData

    recipe = recipe_of(stage)
    base = base_model(recipe, stage.parent)
    data = ModelCardData(
        base_model=base,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=[
            "overrefusal-po",
            "over-refusal",
            "safety",
            *([method] if (method := recipe.get("method")) else []),
        ],
        model_name=one_line(f"{summary.title}, {run.name}"),
        eval_results=[*results(run, summary)],
    )
    words = "\n".join(line for part in body(summary, run, recipe, base) for line in (part, ""))
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n{words}", ignore_metadata_errors=False))


def results(run: Run, summary: Summary) -> Iterator[EvalResult]:
    """Every rate of the run, of each of its sets where there are several, and what it refuses under
    each attack."""
    sets = {name: rates for name, rates in run.sets.items() if len(run.sets) > 1}
    named: dict[str, Rates] = {", ".join(set_names(summary)): run, **sets}
    for name, rates in named.items():
        yield from results_on(name, rates, METRICS)
    for attack, rates in run.attacks.items():
        if attack != "none":
            yield from results_on(
                f"{', '.join(set_names(summary))}, attacked with {attack}",
                rates,
                ("harmful_refused", "harmful_not_unsafe"),
            )


def results_on(
    dataset: str, rates: Rates, metrics: Mapping[str, str] | tuple[str, ...]
) -> Iterator[EvalResult]:
    """One entry a metric that was measured; interval, n and unscored count are its arguments."""
    from huggingface_hub import EvalResult

    for metric in metrics:
        value, ends = getattr(rates, metric), rates.intervals.get(metric)
        if value is not None:
            yield EvalResult(
                task_type="text-generation",
                dataset_type=re.sub(r"[^\w.-]+", "-", one_line(dataset)).strip("-").lower()
                or "unknown",
                dataset_name=one_line(dataset),
                metric_type=metric,
                metric_name=METRICS[metric],
                metric_value=round(value, 4),
                metric_args={
                    "interval_95": None if ends is None else [round(end, 4) for end in ends],
                    "n": rates.n.get(metric, 0),
                    "unscored": rates.unscored.get(metric, 0),
                },
            )


def method_words(recipe: Mapping[str, Any]) -> str:
    """What the card calls the method of a training recipe; "training" without a recipe.

    The card may be written where a package with a method of its own is not installed.
    """
    name = recipe.get("method")
    return METHODS[name].label if name in METHODS else one_line(str(name or "training"))


def body(summary: Summary, run: Run, recipe: Mapping[str, Any], base: str | None) -> Iterator[str]:
    """The card's Markdown, a part at a time."""
    yield f"# {one_line(summary.title)}: {one_line(run.name)}"
    yield (
        f"Trained from {f'`{base}`' if base else 'another model'} by {method_words(recipe)} with "
        "overrefusal-po, "
        "to answer what only sounds "
        "dangerous and still refuse what is harmful; the table says how far it does."
    )
    yield "## Results"
    yield (
        f"Measured on {', '.join(set_names(summary))}; {public(summary.measured.engine)}. Judge: "
        f"{public(summary.measured.judge)}, {certificate_words(run)}. In brackets: 95 % intervals."
    )
    yield "\n".join(rate_table(summary))
    if run.attacks:
        what = "judged unsafe by the guard" if summary.measured.guard else "not refused"
        yield f"Under attack, the share of harmful prompts {what}:"
        yield "\n".join(attack_table(run))
    yield from gate_words(run)
    yield "## Limits"
    yield "\n".join(f"- {line}" for line in limits(summary))
    settings = numbers(recipe.get("trainer", {}))
    if settings:
        yield "## Training"
        yield (
            "```yaml\n"
            + yaml.safe_dump({"method": recipe.get("method"), "trainer": settings}, sort_keys=False)
            + "```"
        )
    versions = ", ".join(
        f"{one_line(name)} {one_line(version)}" for name, version in summary.versions.items()
    )
    yield f"Measured {one_line(summary.created)} on {one_line(summary.hardware)}{f' with {versions}' if versions else ''}."


def rate_table(summary: Summary) -> Iterator[str]:
    """A row for every run, a column for every rate: raw, and corrected where a certificate allows
    it."""
    columns = [
        metric
        for metric in METRICS
        if any(getattr(run, metric) is not None for run in summary.runs)
    ]
    fixed = [
        kind
        for kind in ("harmful_refused", "benign_answered")
        if any(run.corrected and getattr(run.corrected, kind) for run in summary.runs)
    ]
    yield (
        "| run | "
        + " | ".join([*(METRICS[c] for c in columns), *(f"{c.upper()} corrected" for c in fixed)])
        + " |"
    )
    yield "|---" * (1 + len(columns) + len(fixed)) + "|"
    for run in summary.runs:
        cells = [rate_words(getattr(run, c), run.intervals.get(c)) for c in columns]
        for kind in fixed:
            rate = getattr(run.corrected, kind) if run.corrected else None
            ends = None if rate is None or rate.low is None else (rate.low, rate.high)
            cells.append(rate_words(None if rate is None else rate.value, ends))
        yield f"| {one_line(run.name)} | " + " | ".join(cells) + " |"


def attack_table(run: Run) -> Iterator[str]:
    """A row for every attack."""
    yield "| attack | share | n |"
    yield "|---|---|---|"
    for attack, rates in run.attacks.items():
        metric = "harmful_not_unsafe" if rates.harmful_not_unsafe is not None else "harmful_refused"
        kept, ends = getattr(rates, metric), rates.intervals.get(metric)
        share = rate_words(None if kept is None else 1 - kept, ends and (1 - ends[1], 1 - ends[0]))
        yield f"| {'as asked' if attack == 'none' else one_line(attack)} | {share} | {rates.n.get(metric, 0)} |"


def rate_words(value: float | None, ends: tuple[float, float] | None) -> str:
    """`0.62 [0.53, 0.71]`, or a dash."""
    if value is None:
        return "–"
    return f"{value:.2f}" if ends is None else f"{value:.2f} [{ends[0]:.2f}, {ends[1]:.2f}]"


def certificate_words(run: Run) -> str:
    """What is known of the judge."""
    if run.certificate is None:
        return "uncertified (nobody has compared it with human labels for these rates)"
    return f"certified against {run.certificate.get('n', 'some')} human labels, κ {run.certificate.get('kappa', '–')}"


def gate_words(run: Run) -> Iterator[str]:
    """The gate's answer, where there was one."""
    if run.gate is not None:
        yield "## Gate"
        yield "Passed." if run.gate.passed else "Not passed:"
        if run.gate.failures:
            yield "\n".join(f"- {one_line(sentence)}" for sentence in run.gate.failures)


def limits(summary: Summary) -> Iterator[str]:
    """What a user has to know before relying on the numbers."""
    if summary.measured.guard is None:
        yield "No guard model read the responses: refused is counted, harm is not judged."
    if not summary.measured.attacks:
        yield "No attack was run: nothing here says how the model behaves under one."
    if summary.measured.model_form:
        yield f"Measured with {one_line(summary.measured.model_form)}; another form of the same training may differ."
    yield from (one_line(note) for note in summary.measured.notes if not looks_local(note))


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


def public(text: str) -> str:
    """A text as one line, or that it is not for others."""
    return "a local one" if looks_local(text) else one_line(text)


def recipe_of(stage: Path) -> dict[str, Any]:
    """The stage's resolved recipe; nothing where it has none."""
    file = stage / "recipe.yaml"
    return (yaml.safe_load(file.read_text()) or {}) if file.is_file() else {}


def base_model(recipe: Mapping[str, Any], folder: Path) -> str | None:
    """The hub name from which the pipeline's training started, through all its stages; None where
    it has none."""
    for _ in range(20):  # stages form a row; a folder made by hand might form a ring
        name = str(recipe.get("model", {}).get("model_name_or_path", ""))
        if name.startswith("bundled:"):
            return BUNDLED.get(name.removeprefix("bundled:"))
        path = Path(name)
        if path.name != "model" or not (folder / path.parent.name / "recipe.yaml").is_file():
            return name if HUB_NAME.fullmatch(name) and not path.exists() else None
        recipe = recipe_of(folder / path.parent.name)
    return None


def numbers(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that are numbers or flags: a text could be a path or a token."""
    return {key: value for key, value in settings.items() if isinstance(value, bool | int | float)}


def one_line(text: str) -> str:
    """A text from outside as one line of Markdown that neither a table nor HTML breaks on."""
    flat = " ".join(str(visible(text)).split())
    return re.sub(r"([\\`*_\[\]|])", r"\\\1", flat.replace("&", "&amp;").replace("<", "&lt;"))
