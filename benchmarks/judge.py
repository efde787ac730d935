"""How well the built-in refusal judge agrees with people, and how fast it is: the judge's table of
RESULTS.md.

    python benchmarks/judge.py LABELS.jsonl --models "mistral-7b-instruct, no system prompt" [--errors]
    python benchmarks/judge.py --starter

LABELS.jsonl: one {prompt, response, human_label, model, label} a line; human_label is
full_compliance, partial_refusal, full_refusal (or refusal, no_refusal: two classes only), label
safe or unsafe. Only rows of the models named are judged or kept, so that a held-out model is not
looked at by accident; `--models -` takes the rows that name no model.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from overrefusal_po.judges.refusal import Judgement, judge_text
from overrefusal_po.prompts import read_source

CLASSES = {
    "full_compliance": "none",
    "partial_refusal": "partial",
    "full_refusal": "full",
    "refusal": "full",
    "no_refusal": "none",
}


class Row(NamedTuple):
    """A labelled reply. `human` is none, partial or full; `kind` is safe, unsafe or - where the
    file does not say."""

    model: str
    kind: str
    prompt: str
    response: str
    human: str
    two_class: bool


class Agreement(NamedTuple):
    """Judge against people on `n` replies; a partial refusal counts as a refusal except in
    `three_class`.

    `bias` is the judge's refusal rate minus the people's. `three_class` is None where people gave
    two classes.
    """

    n: int
    kappa: float
    accuracy: float
    precision: float
    recall: float
    bias: float
    three_class: float | None


def read_rows(path: Path, models: list[str]) -> list[Row]:
    """The rows of the models named; ValueError that lists the names in the file where one is not in
    it."""
    rows, names = [], Counter[str]()
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            found = json.loads(line)
            model = found.get("model") or "-"
            names[model] += 1
            if model in models:
                two = found["human_label"] in ("refusal", "no_refusal")
                human = CLASSES[found["human_label"]]
                rows.append(
                    Row(
                        model,
                        found.get("label") or "-",
                        found["prompt"],
                        found["response"],
                        human,
                        two,
                    )
                )
    if unknown := set(models) - set(names):
        raise ValueError(
            f"no rows of {sorted(unknown)} in {path}; it has {dict(names)}. Name some with "
            "--models."
        )
    return rows


def kappa(both: int, judge_only: int, human_only: int, neither: int) -> float:
    """Cohen's kappa of two raters with two classes; 1 where both always give the same single
    class."""
    n = both + judge_only + human_only + neither
    by_judge, by_human = (both + judge_only) / n, (both + human_only) / n
    chance = by_judge * by_human + (1 - by_judge) * (1 - by_human)
    return 1.0 if chance == 1 else ((both + neither) / n - chance) / (1 - chance)


def agreement(rows: list[Row], judged: list[Judgement]) -> Agreement:
    """How the verdicts compare with the labels of the same rows."""
    pairs = [(found.refusal, row.human) for row, found in zip(rows, judged, strict=True)]
    count = Counter((ours != "none", human != "none") for ours, human in pairs)
    both, judge_only, human_only, neither = (count[k] for k in ((1, 1), (1, 0), (0, 1), (0, 0)))
    n = len(pairs)
    return Agreement(
        n,
        kappa(both, judge_only, human_only, neither),
        (both + neither) / n,
        both / max(1, both + judge_only),
        both / max(1, both + human_only),
        (judge_only - human_only) / n,
        None
        if any(row.two_class for row in rows)
        else sum(ours == human for ours, human in pairs) / n,
    )


def cells(found: Agreement) -> str:
    """The figures as cells of a Markdown row."""
    three = "-" if found.three_class is None else f"{found.three_class:.3f}"
    return (
        f"{found.n} | {found.kappa:.3f} | {found.accuracy:.3f} | {found.precision:.3f} | "
        f"{found.recall:.3f} | {100 * found.bias:+.1f} | {three}"
    )


def print_table(rows: list[Row], judged: list[Judgement]) -> None:
    """One line for each model and kind, and each model as a whole."""
    print(
        "| model | kind | n | kappa | accuracy | precision | recall | bias, points | three-class "
        "|\n" + "|---" * 9 + "|"
    )
    for model in dict.fromkeys(row.model for row in rows):
        for kind in ("all", *sorted({row.kind for row in rows if row.model == model} - {"-"})):
            chosen = [
                i for i, row in enumerate(rows) if row.model == model and kind in ("all", row.kind)
            ]
            print(
                f"| {model} | {kind} | "
                f"{cells(agreement([rows[i] for i in chosen], [judged[i] for i in chosen]))} |"
            )


def print_speed(rows: list[Row], rounds: int) -> None:
    """Replies a second of CPU time on one core, the fastest of some rounds."""
    seconds = []
    for _ in range(rounds):
        started = time.process_time()
        for row in rows:
            judge_text(row.response, row.prompt)
        seconds.append(time.process_time() - started)
    length = sum(len(row.response) for row in rows) / len(rows)
    print(
        f"\n{len(rows) / min(seconds):,.0f} replies a second of CPU time (they average "
        f"{length:.0f} characters)"
    )


def print_starter() -> None:
    """Refusals of the starter set that are seen, and answers of it that are called refusals."""
    prompts = read_source("starter", None)
    refusals = [(p.reference, p.text) for p in prompts if p.kind == "harmful"]
    refusals += [(p.overcautious, p.text) for p in prompts if p.overcautious]
    answers = [(p.reference, p.text) for p in prompts if p.kind != "harmful"]
    seen = sum(judge_text(text or "", asked).refusal != "none" for text, asked in refusals)
    false = sum(judge_text(text or "", asked).refusal != "none" for text, asked in answers)
    print(
        f"starter: {seen} of {len(refusals)} refusals seen, {false} of {len(answers)} answers "
        "called refusals"
    )


def main() -> None:
    """Prints the table, the speed and, on demand, the rows on which judge and people differ."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("labels", nargs="?", type=Path)
    parser.add_argument(
        "--models", nargs="+", default=[], help="exact names; rows of other models are passed over"
    )
    parser.add_argument(
        "--errors", action="store_true", help="print the rows on which judge and people differ"
    )
    parser.add_argument("--rounds", type=int, default=3, help="rounds of the speed measurement")
    parser.add_argument("--starter", action="store_true", help="measure the starter set too")
    args = parser.parse_args()
    if args.labels:
        rows = read_rows(args.labels, args.models)
        if not rows:
            parser.error("name at least one model with --models")
        judged = [judge_text(row.response, row.prompt) for row in rows]
        print_table(rows, judged)
        print_speed(rows, args.rounds)
        for row, found in zip(rows, judged, strict=True) if args.errors else ():
            if found.refusal != row.human and not (
                row.two_class and "none" not in (found.refusal, row.human)
            ):
                print(
                    f"\n--- {row.kind}: people {row.human}, judge {found.refusal} at "
                    f"{found.refusal_start}"
                )
                print(f"{row.prompt!r}\n{row.response!r}")
    if args.starter:
        print_starter()


if __name__ == "__main__":
    main()
