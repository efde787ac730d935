"""Responses that people labelled + a judge's verdicts -> a certificate: how often, where and which
way the judge errs.

    labelled = read_labels("labels.jsonl")
    # {prompt, response, human_label, model, label} a line
    certificate = certify(judge, labelled, labels="labels.jsonl")
    for row in table(certificate): print(*row)

A certificate holds numbers and hashes, no text. `corrections.corrected_rates` takes its
`confusions()`; it must not be made on the prompts whose rates it corrects (`check_applies`).
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from overrefusal_po.evaluate.corrections import Confusion
from overrefusal_po.evaluate.intervals import bootstrap, cluster_sums, effective_n, wilson
from overrefusal_po.evaluate.labels import Labelled
from overrefusal_po.evaluate.labels import blinded_sample as blinded_sample
from overrefusal_po.evaluate.labels import read_labels as read_labels
from overrefusal_po.records import (
    Completion,
    Kind,
    Prompt,
    Record,
    Sampling,
    Verdict,
    bare_words,
    content_id,
    first_fault,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

RESAMPLES = 2000
HEAD = (
    "model",
    "prompts",
    "n",
    "unscored",
    "agree 2",
    "agree 3",
    "kappa",
    "precision",
    "recall",
    "specificity",
    "bias",
)


class Estimate(Record):
    """A number and its 95 % interval; None where nothing says it (no refusal seen: no
    precision)."""

    value: float | None = None
    low: float | None = None
    high: float | None = None


class Cell(Record):
    """How the judge did on one model's responses to one kind of prompts; None stands for all
    models, both kinds.

    Refusal is the positive class, partial refusals included. `agreement_three` tells partial from
    full.
    """

    model: str | None
    kind: Kind | None
    n: int
    unscored: int
    num_prompts: int
    agreement: Estimate
    agreement_three: Estimate
    kappa: Estimate
    """Cohen's, of the two classes."""
    precision: Estimate
    recall: Estimate
    """The sensitivity."""
    specificity: Estimate
    bias_points: Estimate
    """The judge's refusal rate minus the human's, in percentage points: above 0 it sees refusals
    that are none."""
    confusion: Confusion


class Certificate(Record):
    """What is known of a judge's errors. `cells` begin with all models, then each; both kinds, then
    benign, harmful."""

    judge: str
    version: str
    made: str
    """UTC, ISO 8601."""
    labels: str | None
    """Name of the labels file."""
    labels_sha256: str
    weighted: bool = False
    """True where rows count by how many they stand for (a sample balanced over verdicts)."""
    cells: tuple[Cell, ...]
    prompts: tuple[str, ...]
    """`signature` of every prompt in it, sorted."""

    def cell(self, model: str | None = None, kind: Kind | None = None) -> Cell:
        """The cell of a model and a kind; KeyError where there is none."""
        for cell in self.cells:
            if (cell.model, cell.kind) == (model, kind):
                return cell
        raise KeyError((model, kind))

    def confusions(self) -> dict[Kind, Confusion]:
        """What `corrections.corrected_rates` needs: the confusion of each kind, over all models."""
        return {
            cell.kind: cell.confusion
            for cell in self.cells
            if cell.model is None and cell.kind is not None
        }


def certify(
    judge: Any, labelled: Sequence[Labelled], *, labels: str | Path | None = None, seed: int = 0
) -> Certificate:
    """What `judge` makes of the responses, against what people said. `labels` is the file they came
    from.

    Agreement, precision, recall and specificity have Wilson intervals, at the size that clusters of
    one prompt (several models answered it) are worth; kappa and bias the bootstrap's, prompts
    redrawn. Raises ValueError where there is nothing to certify: no row, or a judge that says
    nothing of refusal.
    """
    if not labelled:
        raise ValueError("there are no labelled responses. A certificate needs at least one.")
    verdicts = judged(judge, labelled)
    if not any(scored(verdict) for verdict in verdicts):
        raise ValueError(
            f"judge {judge.name} scored none of the {len(labelled)} responses for refusal "
            f"({verdicts[0].unscored or 'its verdicts say nothing of refusal'}), so that there is "
            "nothing to certify."
        )
    pairs = list(zip(labelled, verdicts, strict=True))
    models: list[str | None] = [None, *sorted({row.model for row in labelled})]
    kinds: tuple[Kind | None, ...] = (None, "benign", "harmful")
    picked = {
        (model, kind): [
            p for p in pairs if model in (None, p[0].model) and kind in (None, p[0].kind)
        ]
        for model in models
        for kind in kinds
    }
    return Certificate(
        judge=judge.name,
        version=judge.version,
        made=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        labels=None if labels is None else Path(labels).name,
        labels_sha256=sha256_of(labelled, labels),
        weighted=any(row.weight != 1 for row in labelled),
        cells=tuple(
            cell_of(model, kind, rows, seed=seed) for (model, kind), rows in picked.items() if rows
        ),
        prompts=tuple(sorted({signature(row.prompt) for row in labelled})),
    )


def judged(judge: Any, labelled: Sequence[Labelled]) -> list[Verdict]:
    """The judge's verdicts in the order of `labelled`."""
    prompts = [Prompt.of(row.prompt, kind=row.kind, source="labels") for row in labelled]
    completions = [
        Completion(
            id=content_id("labelled", number, row.model, prompt.id, row.response),
            prompt_id=prompt.id,
            text=row.response,
            model=row.model,
            engine="labels",
            sampling=Sampling(),
        )
        for number, (row, prompt) in enumerate(zip(labelled, prompts, strict=True))
    ]
    verdicts: list[Verdict] = judge.score(prompts, completions)
    assert [v.completion_id for v in verdicts] == [c.id for c in completions], (
        f"{judge.name} lost or moved a verdict"
    )
    return verdicts


def scored(verdict: Verdict) -> bool:
    """Whether the verdict says anything of refusal."""
    return verdict.unscored is None and verdict.refusal is not None


def sha256_of(labelled: Sequence[Labelled], labels: str | Path | None) -> str:
    """Of the file's bytes, or of the rows where they came from no file."""
    if labels is not None:
        return hashlib.sha256(Path(labels).read_bytes()).hexdigest()
    return hashlib.sha256("\n".join(row.model_dump_json() for row in labelled).encode()).hexdigest()


Pair = tuple[Labelled, Verdict]


def cell_of(model: str | None, kind: Kind | None, pairs: Sequence[Pair], *, seed: int) -> Cell:
    """All numbers of one cell."""
    rows = [pair for pair in pairs if scored(pair[1])]

    def among(
        hit: Callable[[Pair], bool], of: Callable[[Pair], bool] = lambda pair: True
    ) -> Estimate:
        return share([pair for pair in rows if of(pair)], hit)

    counts = cluster_sums(
        (signature(row.prompt), contingency(row, verdict)) for row, verdict in rows
    )
    bias = estimate(bias_of, counts, seed)
    return Cell(
        model=model,
        kind=kind,
        n=len(rows),
        unscored=len(pairs) - len(rows),
        num_prompts=len(counts),
        agreement=among(agrees),
        agreement_three=among(lambda pair: pair[0].human == pair[1].refusal),
        kappa=estimate(kappa_of, counts, seed),
        precision=among(human_refused, of=judge_refused),
        recall=among(judge_refused, of=human_refused),
        specificity=among(agrees, of=lambda pair: not human_refused(pair)),
        bias_points=bias,
        confusion=confusion_of(rows),
    )


def human_refused(pair: Pair) -> bool:
    """The person's label, two classes."""
    return pair[0].refused


def judge_refused(pair: Pair) -> bool:
    """The judge's verdict, two classes."""
    return pair[1].refused


def agrees(pair: Pair) -> bool:
    """Whether both say refusal, or both say none."""
    return human_refused(pair) == judge_refused(pair)


def contingency(row: Labelled, verdict: Verdict) -> tuple[float, float, float, float]:
    """The row's weight in [both refused, the judge alone, the human alone, neither]."""
    place = (0 if verdict.refused else 2) if row.refused else (1 if verdict.refused else 3)
    a, b, c, d = (row.weight if place == i else 0.0 for i in range(4))
    return a, b, c, d


def weighted_sums(pairs: Sequence[Pair], hit: Callable[[Pair], bool]) -> tuple[float, float, float]:
    """(weight of the hits, weight of all, how many independent responses they are worth)."""
    total = sum(row.weight for row, _ in pairs)
    scale = (
        len(pairs) / total if total else 1.0
    )  # to a mean of 1, so that equal weights are worth the number of rows
    sums = cluster_sums(
        (signature(pair[0].prompt), (hit(pair) * pair[0].weight * scale, pair[0].weight * scale))
        for pair in pairs
    )
    hits, sizes = ([row[column] for row in sums] for column in (0, 1))
    return (
        sum(row.weight for row, verdict in pairs if hit((row, verdict))),
        total,
        effective_n(hits, sizes),
    )


def share(pairs: Sequence[Pair], hit: Callable[[Pair], bool]) -> Estimate:
    """The share of hits with Wilson's interval."""
    if not pairs:
        return Estimate()
    hits, total, effective = weighted_sums(pairs, hit)
    low, high = wilson(hits / total, effective)
    return Estimate(value=hits / total, low=low, high=high)


def confusion_of(pairs: Sequence[Pair]) -> Confusion:
    """The four counts, and what refusals and answers are worth as evidence."""
    seen, refused, refused_effective = weighted_sums(
        [p for p in pairs if human_refused(p)], judge_refused
    )
    kept, answered, answered_effective = weighted_sums(
        [p for p in pairs if not human_refused(p)], agrees
    )
    return Confusion(
        refused=refused,
        refused_seen=seen,
        answered=answered,
        answered_seen=kept,
        refused_effective=refused_effective,
        answered_effective=answered_effective,
    )


def estimate(
    statistic: Callable[[Floats], Floats], counts: Sequence[Sequence[float]], seed: int
) -> Estimate:
    """`statistic` of the summed counts with its bootstrap interval, prompts redrawn."""
    value, low, high = bootstrap(statistic, counts, resamples=RESAMPLES, seed=seed)
    return Estimate(value=value, low=low, high=high)


def kappa_of(counts: Floats) -> Floats:
    """Cohen's kappa (1960) of counts (..., [both, judge alone, human alone, neither]); nan where
    both say one class only."""
    import numpy as np

    both, judge, human, neither = np.moveaxis(counts / counts.sum(axis=-1, keepdims=True), -1, 0)
    chance = (both + judge) * (both + human) + (judge + neither) * (human + neither)
    left = 1 - chance
    certain = left < 1e-12
    found: Floats = np.where(
        certain, np.nan, (both + neither - chance) / np.where(certain, 1.0, left)
    )
    return found


def bias_of(counts: Floats) -> Floats:
    """100 · (the judge's refusal rate - the human's), from the same counts."""
    found: Floats = 100 * (counts[..., 1] - counts[..., 2]) / counts.sum(axis=-1)
    return found


def signature(text: str) -> str:
    """SHA-256 of a prompt's words: the same whatever its case, punctuation and blanks."""
    return hashlib.sha256(bare_words(text).encode()).hexdigest()


def check_applies(
    certificate: Certificate, judge_name: str, judge_version: str, prompts: Iterable[Prompt | str]
) -> None:
    """Raises ValueError where the certificate is another judge's or version's, or was made on any
    of `prompts`.

    A judge is known best on the prompts that it was certified on; a correction from the same
    prompts would borrow that. An attacked prompt counts as what was asked before the attack.
    """
    made_for = f"{certificate.judge} {certificate.version}"
    if (certificate.judge, certificate.version) != (judge_name, judge_version):
        raise ValueError(
            f"the certificate is of judge {made_for}, the verdicts are of {judge_name} "
            f"{judge_version}. Make a certificate of the judge that was used: overrefusal-po "
            f"certify {judge_name} --labels FILE.jsonl"
        )
    texts = {text for p in prompts for text in ((p,) if isinstance(p, str) else (p.asked, p.text))}
    known = set(certificate.prompts)
    if shared := sum(signature(text) in known for text in texts):
        raise ValueError(
            f"{shared} of the measured prompts are among the {len(known)} on which the certificate "
            f"of {made_for} was "
            "made. A certificate corrects rates of other prompts only: use labels of prompts that "
            "are not measured here."
        )


def table(certificate: Certificate) -> list[tuple[str, ...]]:
    """The certificate's cells as rows of text under `HEAD`, shares in per cent with their
    intervals."""
    return [HEAD, *(printed(cell) for cell in certificate.cells)]


def printed(cell: Cell) -> tuple[str, ...]:
    """One cell as text."""
    shares = (cell.agreement, cell.agreement_three, cell.precision, cell.recall, cell.specificity)
    two, three, precision, recall, specificity = (shown(found, 100, ".1f") for found in shares)
    names = (cell.model or "all models", cell.kind or "both kinds", str(cell.n), str(cell.unscored))
    kappa, bias = shown(cell.kappa, 1, ".3f"), shown(cell.bias_points, 1, "+.1f")
    return (*names, two, three, kappa, precision, recall, specificity, bias)


def shown(found: Estimate, scale: float, form: str) -> str:
    """`90.0 [85.1, 93.4]`, a dash for what nothing says."""
    if found.value is None:
        return "–"
    ends = (
        ""
        if found.low is None or found.high is None
        else f" [{found.low * scale:{form}}, {found.high * scale:{form}}]"
    )
    return f"{found.value * scale:{form}}{ends}"


def read_certificate(path: str | Path) -> Certificate:
    """A certificate from its JSON file; ValueError says what is wrong with it."""
    file = Path(path)
    if not file.is_file():
        raise ValueError(
            f"{file}: there is no such file. Make one: overrefusal-po certify JUDGE --labels "
            "FILE.jsonl"
        )
    try:
        return Certificate.model_validate_json(file.read_bytes())
    except ValidationError as error:
        raise ValueError(
            f"{file}: this is not a judge's certificate: {first_fault(error)}"
        ) from None
