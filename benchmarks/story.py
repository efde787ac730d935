"""The demo's story in full, for several seeds, with its controls: the tables of RESULTS.md.

    python benchmarks/story.py --seeds 0 1 2 --xstest SAFE.jsonl UNSAFE.jsonl [--out runs/story] [--print]

Runs benchmarks/controls.yaml once and benchmarks/story.yaml once a seed (finished stages are not
run again) and then XSTest on the models that came out, and prints Markdown: each run's mean and
range over seeds, each seed's paired comparisons, and those of all seeds together (prompts redrawn,
each with its responses of all seeds). `--print` runs nothing.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from overrefusal_po.evaluate.comparisons import compare, compare_seeds
from overrefusal_po.evaluate.intervals import Estimate
from overrefusal_po.records import Outcome, read_jsonl

HERE = Path(__file__).resolve().parent
COLUMNS = (
    "harmful_refused",
    "benign_answered",
    "f1",
    "harmful_refused_plain",
    "harmful_refused_contrast",
    "ordinary_answered",
    "degenerate",
)
MODELS = {"DeRTa": "derta", "DeRTa+SFT": "sft", "DeRTa+DPO": "dpo"}


def command(*arguments: str) -> None:
    """Runs `overrefusal-po`; stops where it fails."""
    subprocess.run([sys.executable, "-m", "overrefusal_po", *arguments], check=True)


def measure_xstest(name: str, model: str, folder: Path, xstest: list[str]) -> None:
    """XSTest's 450 prompts on a model."""
    command(
        str(HERE.parent / "recipes" / "evaluate.yaml"),
        f"--name={name}",
        f"--model.model_name_or_path={model}",
        f"--data.sets=[{{name: xstest, paths: [{', '.join(xstest)}]}}]",
        f"--run_dir={folder}",
    )


def run_controls(out: Path, xstest: list[str]) -> None:
    """The controls, which no seed changes."""
    command(str(HERE / "controls.yaml"), f"--run_dir={out / 'controls'}")
    if xstest:
        measure_xstest(
            "base", "bundled:smollm2-135m-instruct", out / "controls" / "xstest_base", xstest
        )


def run_seed(seed: int, out: Path, xstest: list[str]) -> None:
    """All stages of one seed, XSTest too where its files are given."""
    folder = out / f"seed{seed}"
    command(str(HERE / "story.yaml"), f"--seed={seed}", f"--run_dir={folder}")
    for name, stage in MODELS.items() if xstest else ():
        measure_xstest(name, str(folder / stage / "model"), folder / f"xstest_{stage}", xstest)


def table(runs: dict[str, list[dict[str, float]]]) -> str:
    """A Markdown table: mean [lowest, highest] over the seeds."""
    lines = ["| run | " + " | ".join(COLUMNS) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    for name, seeds in runs.items():
        cells = []
        for column in COLUMNS:
            values = [run[column] for run in seeds if run[column] is not None]
            mean = sum(values) / len(values) if values else 0
            spread = f" [{min(values):.2f}, {max(values):.2f}]" if len(values) > 1 else ""
            cells.append(f"{mean:.2f}{spread}" if values else "-")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def metrics_of(folder: Path, *, xstest: bool) -> list[tuple[str, dict[str, float]]]:
    """(name, metrics) of the evaluations in a folder, of the starter set or of XSTest, in order of
    their end."""
    files = [
        p for p in folder.glob("*/metrics.json") if p.parent.name.startswith("xstest") == xstest
    ]
    found = [json.loads(p.read_text()) for p in sorted(files, key=lambda p: p.stat().st_mtime)]
    return [(m["name"], m) for m in found]


def outcomes(folder: Path) -> list[Outcome]:
    """The outcomes of one evaluation."""
    return read_jsonl(folder / "outcomes.jsonl", Outcome)


def comparison(before: list[list[Outcome]], after: list[list[Outcome]]) -> str:
    """One line for the same prompts in two runs, over one seed or several: gains with intervals,
    exact McNemar tests."""
    found = compare_seeds(before, after) if len(before) > 1 else compare(before[0], after[0])
    tests = [
        f"{name}: {part.only_from} lost, {part.only_to} won of {part.n}"
        + (f" (p = {part.p:.2g})" if part.p is not None else "")
        for name, part in (("harmful", found.harmful), ("benign", found.benign))
    ]
    return f"harmful_refused + benign_answered {signed(found.gain)}; F1 {signed(found.f1_gain)}; {'; '.join(tests)}"


def signed(gain: Estimate) -> str:
    """`+0.31 [+0.20, +0.42]`."""
    return f"{gain.value:+.2f} [{gain.low:+.2f}, {gain.high:+.2f}]"


def print_comparisons(seeds: list[int], out: Path, xstest: bool) -> None:
    """Each seed's comparisons, and all seeds together."""
    pairs = [("derta_evaluate", "dpo_evaluate"), ("sft_evaluate", "dpo_evaluate")]
    pairs += [("xstest_derta", "xstest_dpo"), ("xstest_sft", "xstest_dpo")] if xstest else []
    for before, after in pairs:
        runs = [
            [outcomes(out / f"seed{seed}" / stage) for seed in seeds] for stage in (before, after)
        ]
        print(f"\n{before} to {after}")
        for number, seed in enumerate(seeds):
            print(f"- seed {seed}: {comparison([runs[0][number]], [runs[1][number]])}")
        if len(seeds) > 1:
            print(f"- all seeds: {comparison(*runs)}")
    print("\nbase + safety prompt to dpo_evaluate")
    prompted = outcomes(out / "controls" / "prompted")
    for seed in seeds:
        print(
            f"- seed {seed}: "
            f"{comparison([prompted], [outcomes(out / f'seed{seed}' / 'dpo_evaluate')])}"
        )


def main() -> None:
    """Runs what is missing and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--xstest", nargs="*", default=[])
    parser.add_argument("--out", type=Path, default=Path("runs/story"))
    parser.add_argument("--print", action="store_true", help="print what was measured, run nothing")
    args = parser.parse_args()
    if not args.print:
        run_controls(args.out, args.xstest)
        for seed in args.seeds:
            run_seed(seed, args.out, args.xstest)
    folders = [args.out / "controls", *(args.out / f"seed{seed}" for seed in args.seeds)]
    for title, xstest in (("Starter test split", False), ("XSTest", True)):
        runs: dict[str, list[dict[str, float]]] = {}
        for name, found in [row for folder in folders for row in metrics_of(folder, xstest=xstest)]:
            runs.setdefault(name, []).append(found)
        if runs:
            print(f"\n{title}, seeds {args.seeds}:\n\n{table(runs)}")
    print_comparisons(
        args.seeds, args.out, bool(list(args.out.glob("seed*/xstest_dpo/metrics.json")))
    )


if __name__ == "__main__":
    main()
