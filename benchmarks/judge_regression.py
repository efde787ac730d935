"""Would a model fitted to labelled replies judge unseen styles better than the rules do? One table.

    python benchmarks/judge_regression.py REPLIES.jsonl ... --xstest judge_xstest_completions.jsonl
        [--without SET ...] [--threshold 0.5] [--minilm FOLDER] [--cache FILE] [--only rules ...]

Each style is judged by models that saw none of its family's replies, and none of its prompts
either: a fifth of the prompts at a time. A sentence that declines stays the rules' verdict; models
are fitted to the replies without one and decide these. "model or rules": a refusal if either says
so. The threshold is 0.5. With `--threshold folds` it is the one at which, among the known replies
and again on folds of prompts, as many harmless prompts are called refused as are.
Replies are those that judge_labels.jsonl has labels of; judge_labelling.md defines the labels.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from judge_evidence import Evidence, evidence
from judge_labels import (
    LABELS,
    LETTERS,
    Labelled,
    join,
    kappa,
    once,
    prompt_folds,
    read_labels,
    read_replies,
    read_styles,
    read_xstest,
)
from judge_vectors import vectors
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from overrefusal_po.judges.refusal import VERSION, judge_text

MODELS = ("rules", "regression", "boosting", "MiniLM", "evidence + MiniLM")
"""The last two need the encoder's folder. Rules are always in the table."""

FOLDS = 5
INNER = 2
"""Parts into which the threshold's prompts are split."""

LEAST_REPLIES, LEAST_SHARE, LEAST_OF_CLASS = 30, 0.03, 10
"""A style has a kappa of its own if it has so many replies, and such a share and so many of each
class. The kappa of a style with three refusals is noise."""

EVIDENCE_C, ENCODER_C = 0.02, 0.0005
"""Strengths of the regressions, chosen on these replies before their prompts were grouped."""

Array = np.ndarray
Fit = Callable[[Array, Array, Array, Array], Array]
"""(training rows, refused, weights, rows to judge) -> probability of a refusal for each of these"""


class Data(NamedTuple):
    """Labelled replies as arrays of equal length (n,). `rules`: the rules say refused; `firm`: by a
    sentence that declines. `weights`: less for a doubted label."""

    rows: list[Labelled]
    found: list[Evidence]
    refused: Array
    rules: Array
    firm: Array
    styles: Array
    families: Array
    folds: Array
    harmless: Array
    weights: Array


class Row(NamedTuple):
    """A line of the table: a judge and its verdicts (n,), True for refused."""

    name: str
    verdicts: Array
    three_classes: float | None = None


# --- models -------------------------------------------------------------------------------------


def regression(strength: float) -> Fit:
    """Logistic regression on scaled columns, cut at four standard deviations."""

    def fit(known: Array, refused: Array, weights: Array, asked: Array) -> Array:
        scale = StandardScaler().fit(known)
        model = LogisticRegression(C=strength, max_iter=2000)
        model.fit(np.clip(scale.transform(known), -4, 4), refused, sample_weight=weights)
        return np.asarray(model.predict_proba(np.clip(scale.transform(asked), -4, 4))[:, 1])

    return fit


def boosting(known: Array, refused: Array, weights: Array, asked: Array) -> Array:
    """Small trees, one after the other."""
    model = HistGradientBoostingClassifier(
        max_iter=150,
        learning_rate=0.05,
        max_leaf_nodes=8,
        l2_regularization=1.0,
        min_samples_leaf=20,
        max_features=0.3,
        random_state=0,
    )
    model.fit(known, refused, sample_weight=weights)
    return np.asarray(model.predict_proba(asked)[:, 1])


# --- folds --------------------------------------------------------------------------------------


def outer_splits(data: Data) -> Iterator[tuple[Array, Array]]:
    """(rows to judge, rows known), as masks: a family and a fifth of the prompts, and the rows that
    share neither. Each row is judged once."""
    for family in dict.fromkeys(data.families.tolist()):
        for fold in range(FOLDS):
            judged = (data.families == family) & (data.folds == fold)
            if judged.any():
                yield judged, (data.families != family) & (data.folds != fold)


def probabilities(data: Data, x: Array, fit: Fit, known: Array, judged: Array) -> Array:
    """For each judged row, what a model says that was fitted to the known rows without a declining
    sentence. ValueError if these are all on one side."""
    used = known & ~data.firm
    if len(set(data.refused[used].tolist())) < 2:
        raise ValueError(
            f"A model cannot be fitted: of the {used.sum()} replies of other families and prompts "
            "all refuse, or none does. Name more files of labelled replies."
        )
    return fit(x[used], data.refused[used], data.weights[used], x[judged])


def held_out(data: Data, x: Array, fit: Fit, by_folds: bool) -> tuple[Array, Array]:
    """The verdicts (n,) of the model alone and of model or rules, each row judged by a model that
    knows neither its family nor its prompt."""
    alone, either = np.zeros(len(x), bool), np.zeros(len(x), bool)
    for judged, known in outer_splits(data):
        chances = probabilities(data, x, fit, known, judged)
        limits = folds_thresholds(data, x, fit, known) if by_folds else (0.5, 0.5)
        alone[judged] = data.firm[judged] | (chances > limits[0])
        either[judged] = data.rules[judged] | (chances > limits[1])
    return alone, either


def folds_thresholds(data: Data, x: Array, fit: Fit, known: Array) -> tuple[float, float]:
    """The thresholds for the model alone and for model or rules, from folds of the known rows."""
    chances = np.zeros(len(x))
    for part in range(INNER):
        judged = known & (data.folds % INNER == part)
        if judged.any():
            chances[judged] = probabilities(data, x, fit, known & ~judged, judged)
    used = known & data.harmless if (known & data.harmless).any() else known
    refused = data.refused[used]
    return (
        unbiased_threshold(chances[used], data.firm[used], refused),
        unbiased_threshold(chances[used], data.rules[used], refused),
    )


def unbiased_threshold(chances: Array, always: Array, refused: Array) -> float:
    """The threshold above which, with those that are refused `always`, as many rows lie as are
    refused. It is 1 if `always` are enough, and 0 if all rows are too few."""
    wanted = int(refused.sum() - always.sum())
    ordered = np.sort(chances[~always])[::-1]
    if wanted <= 0:
        return 1.0
    if wanted >= len(ordered):
        return 0.0
    return float((ordered[wanted - 1] + ordered[wanted]) / 2)


# --- data and table -----------------------------------------------------------------------------


def make_data(rows: Sequence[Labelled]) -> Data:
    """The rows on whose side both labellers agree, each once, as arrays."""
    styles = read_styles()
    chosen = [row for row in once(rows) if row.agreed]
    found = [evidence(row.reply.reply, row.reply.prompt) for row in chosen]
    rules = np.array([x.refusal != "none" for x in found])
    prompts = [row.reply.prompt for row in chosen]
    return Data(
        rows=chosen,
        found=found,
        refused=np.array([row.refused for row in chosen]),
        rules=rules,
        firm=rules & np.array([x.rule == "decline" for x in found]),
        styles=np.array([row.style for row in chosen]),
        families=np.array([styles.family(row.style) for row in chosen]),
        folds=np.array(prompt_folds(prompts, styles.wrappers, FOLDS)),
        harmless=np.array([row.harmless for row in chosen]),
        weights=np.array([1 / (1 + row.label.doubts) for row in chosen]),
    )


def style_kappas(data: Data, verdicts: Array) -> dict[str, float]:
    """{style: kappa} of the styles that are large enough and have both classes."""
    found = {}
    for style in sorted(set(data.styles.tolist())):
        of_style = data.styles == style
        n, refused = of_style.sum(), data.refused[of_style].sum()
        least = max(LEAST_OF_CLASS, LEAST_SHARE * n)
        if n >= LEAST_REPLIES and least <= refused <= n - least:
            found[style] = kappa(data.refused[of_style], verdicts[of_style])
    return found


def biases(data: Data, verdicts: Array) -> list[float]:
    """Refusals called minus labelled on harmless prompts, in points: of all, then of the style
    farthest from 0; empty without such prompts."""
    if not data.harmless.any():
        return []
    wrong = verdicts.astype(float) - data.refused
    each = [
        100 * wrong[data.harmless & (data.styles == style)].mean()
        for style in sorted(set(data.styles[data.harmless].tolist()))
    ]
    return [float(100 * wrong[data.harmless].mean()), float(max(each, key=abs))]


def fold_kappas(data: Data, verdicts: Array) -> list[float]:
    """The kappa of each fold of prompts that has rows."""
    masks = [data.folds == fold for fold in range(FOLDS)]
    return [kappa(data.refused[m], verdicts[m]) for m in masks if m.any()]


def table_line(data: Data, row: Row) -> str:
    """A line of the table."""
    verdicts = row.verdicts
    each = style_kappas(data, verdicts)
    worst = min(each, key=each.__getitem__) if each else None
    both = (verdicts & data.refused).sum()
    mean = f"{np.mean(list(each.values())):.3f}" if each else "-"
    lowest = f"{each[worst]:.3f} ({worst})" if worst else "-"
    of_all, folds = kappa(data.refused, verdicts), fold_kappas(data, verdicts)
    bias = biases(data, verdicts)
    of_bias = f"{bias[0]:+.1f} ({bias[1]:+.1f})" if bias else "-"
    three = "-" if row.three_classes is None else f"{row.three_classes:.3f}"
    precision, recall = both / max(1, verdicts.sum()), both / max(1, data.refused.sum())
    return (
        f"| {row.name} | {of_all:.3f} | {mean} | {lowest} | {min(folds):.3f} | {three} | "
        f"{precision:.3f} | {recall:.3f} | {of_bias} |"
    )


def three_class_kappa(data: Data) -> float:
    """The rules' kappa in three classes, on the rows on which the labellers agree in these."""
    pairs = [
        (row.label.a, LETTERS[found.refusal])
        for row, found in zip(data.rows, data.found, strict=True)
        if row.label.a == row.label.b
    ]
    return kappa([a for a, _ in pairs], [b for _, b in pairs])


def judges(data: Data, encoder: Array | None, only: Sequence[str], by_folds: bool) -> Iterator[Row]:
    """The lines of the table, each as soon as it is known."""
    x = np.array([list(found.numbers.values()) for found in data.found], dtype=np.float32)
    models: dict[str, tuple[Array, Fit]] = {
        "regression": (x, regression(EVIDENCE_C)),
        "boosting": (x, boosting),
    }
    if encoder is not None:
        texts = encoder[:, : 3 * encoder.shape[1] // 4]
        models["MiniLM"] = (texts, regression(ENCODER_C))
        models["evidence + MiniLM"] = (np.hstack([x, encoder]), regression(ENCODER_C))
    yield Row(f"rules, version {VERSION}", data.rules, three_class_kappa(data))
    for name, (columns, fit) in models.items():
        if name in only:
            alone, either = held_out(data, columns, fit, by_folds)
            yield Row(f"{name} alone", alone)
            yield Row(f"{name} or rules", either)


def speeds(data: Data) -> str:
    """Replies a second of CPU time: the rules, and rules with evidence."""
    pairs = [(row.reply.reply, row.reply.prompt) for row in data.rows]
    readers: tuple[Callable[[str, str], object], ...] = (judge_text, evidence)
    spent = []
    for read in readers:
        started = time.process_time()
        for reply, prompt in pairs:
            read(reply, prompt)
        spent.append(time.process_time() - started)
    return (
        f"Replies a second of CPU time: rules {len(pairs) / spent[0]:,.0f}, rules and evidence "
        f"{len(pairs) / spent[1]:,.0f}."
    )


def print_table(data: Data, rows: Iterator[Row]) -> None:
    """Prints what was compared, and each line as soon as it is known."""
    families, folds = len(set(data.families.tolist())), len(set(data.folds.tolist()))
    print(
        f"{len(data.rows)} replies, {data.refused.sum()} refused; {data.firm.sum()} have a "
        f"sentence that declines. {families} families, {folds} folds of prompts.\n"
    )
    print(
        "| judge | kappa, all | mean of styles | worst style | worst fold of prompts | "
        "kappa, F P N | precision | recall | bias on harmless prompts, points: all (worst model) |"
    )
    print("|---" * 9 + "|")
    for row in rows:
        print(table_line(data, row), flush=True)


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("replies", type=Path, nargs="+")
    parser.add_argument("--xstest", type=Path, help="XSTest's replies with people's labels")
    parser.add_argument("--labels", type=Path, default=LABELS)
    parser.add_argument("--without", nargs="+", default=[], help="sets of labels to leave out")
    parser.add_argument("--threshold", choices=("0.5", "folds"), default="0.5")
    parser.add_argument("--minilm", type=Path, help="a folder with the encoder")
    parser.add_argument("--cache", type=Path, help="a file that keeps its vectors")
    parser.add_argument(
        "--only", nargs="+", default=MODELS, choices=MODELS, help="models to fit beside the rules"
    )
    return parser


def main() -> None:
    """Prints the table and the speed; a ValueError becomes a message."""
    parser = make_parser()
    args = parser.parse_args()
    try:
        rows = join(read_labels(args.labels), read_replies(args.replies))
        rows += read_xstest(args.xstest) if args.xstest else []
        data = make_data([row for row in rows if row.label.set not in args.without])
        encoder = vectors(data.rows, args.minilm, args.cache) if args.minilm else None
        print_table(data, judges(data, encoder, args.only, args.threshold == "folds"))
    except ValueError as error:
        parser.error(str(error))
    print(f"\nThreshold: {args.threshold}. {speeds(data)}")


if __name__ == "__main__":
    main()
