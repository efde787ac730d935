"""Responses that people labelled + a judge's verdicts -> a certificate: how often, where and which
way the judge errs.

    labelled = read_labels("labels.jsonl")
    # {prompt, response, human_label, model, label} a line
    certificate = certify(judge, labelled, labels="labels.jsonl")
    for row in certificate_table(certificate):
        print(*row)

A certificate holds numbers and hashes, no text. `corrections.corrected_rates` takes its
`confusions()`. It must not be made on the prompts whose rates it corrects (`check_applies`).
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from pydantic import ValidationError

from overrefusal_po.evaluate.agreement import (
    Cell,
    CellNumber,
    LabelledVerdict,
    measure_cell,
    signature,
)
from overrefusal_po.evaluate.corrections import Confusion
from overrefusal_po.evaluate.labels import Labelled
from overrefusal_po.evaluate.metrics import is_scored
from overrefusal_po.identity import conversation_text
from overrefusal_po.json_files import is_file
from overrefusal_po.judges import Judge, scored
from overrefusal_po.records import (
    Completion,
    Kind,
    Prompt,
    Record,
    Sampling,
    Verdict,
    content_id,
    first_fault,
)

TABLE_HEAD = (
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


class Certificate(Record):
    """What is known of a judge's errors.

    `cells` begin with all models, then each model; in each, both kinds, then benign, harmful.
    """

    judge: str
    version: str
    made: str
    """UTC, ISO 8601."""
    labels: str | None
    """Name of the labels file."""
    labels_sha256: str
    weighted: bool = False
    """True if rows count by how many they stand for (a sample balanced over verdicts)."""
    cells: tuple[Cell, ...]
    prompts: tuple[str, ...]
    """`signature` of every prompt in it, sorted."""

    def confusions(self) -> dict[Kind, Confusion]:
        """The confusion of each kind over all models, for `corrections.corrected_rates`."""
        return {
            cell.kind: cell.confusion
            for cell in self.cells
            if cell.model is None and cell.kind is not None
        }


def certify(
    judge: Judge, labelled: Sequence[Labelled], *, labels: str | Path | None = None, seed: int = 0
) -> Certificate:
    """The judge's verdicts on the responses against what people said, as a certificate.

    `labels` is the file that the rows came from. Agreement, precision, recall and specificity have
    Wilson intervals; kappa and bias have those of `score_intervals.smoothed`. Raises ValueError if
    there is nothing to certify: no row, or a judge whose verdicts do not tell refusals.
    """
    if not labelled:
        raise ValueError("there are no labelled responses. A certificate needs at least one.")
    verdicts = verdicts_on(judge, labelled)
    if not any(map(is_scored, verdicts)):
        raise ValueError(
            f"judge {judge.name} scored none of the {len(labelled)} responses for refusal "
            f"({verdicts[0].unscored or 'its verdicts do not tell refusals'}), so there is nothing "
            "to certify."
        )
    return Certificate(
        judge=judge.name,
        version=judge.version,
        made=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        labels=None if labels is None else Path(labels).name,
        labels_sha256=labels_hash(labelled, labels),
        weighted=any(row.weight != 1 for row in labelled),
        cells=measure_cells(list(zip(labelled, verdicts, strict=True)), seed=seed),
        prompts=tuple(sorted({signature(row.prompt) for row in labelled})),
    )


def measure_cells(pairs: Sequence[LabelledVerdict], *, seed: int) -> tuple[Cell, ...]:
    """A cell for every model and kind that occurs, in the order that `Certificate` names."""
    models: list[str | None] = [None, *sorted({row.model for row, _ in pairs})]
    kinds: tuple[Kind | None, ...] = (None, "benign", "harmful")
    cells = []
    for model in models:
        for kind in kinds:
            rows = [p for p in pairs if model in (None, p[0].model) and kind in (None, p[0].kind)]
            if rows:
                cells.append(measure_cell(model, kind, rows, seed=seed))
    return tuple(cells)


def verdicts_on(judge: Judge, labelled: Sequence[Labelled]) -> list[Verdict]:
    """The judge's verdicts in the order of `labelled`."""
    prompts = [row.asked for row in labelled]
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
    return scored(judge, prompts, completions)


def labels_hash(labelled: Sequence[Labelled], labels: str | Path | None) -> str:
    """SHA-256 of the labels file's bytes, or of the rows if they came from no file."""
    if labels is not None:
        return hashlib.sha256(Path(labels).read_bytes()).hexdigest()
    return hashlib.sha256("\n".join(row.model_dump_json() for row in labelled).encode()).hexdigest()


def check_applies(
    certificate: Certificate, judge_name: str, judge_version: str, prompts: Iterable[Prompt | str]
) -> None:
    """Raises ValueError if the certificate is another judge's or version's, or was made on any of
    `prompts`.

    A judge is known best on the prompts of its certificate: corrected rates of those would look too
    good. An attacked prompt counts as what was asked before the attack.
    """
    made_for = f"{certificate.judge} {certificate.version}"
    if (certificate.judge, certificate.version) != (judge_name, judge_version):
        raise ValueError(
            f"the certificate is of judge {made_for}, the verdicts are of {judge_name} "
            f"{judge_version}. Make a certificate of the judge that was used: overrefusal-po "
            f"certify {judge_name} --labels FILE.jsonl"
        )
    texts = {text for p in prompts for text in ((p,) if isinstance(p, str) else asked_forms(p))}
    known = set(certificate.prompts)
    if shared := sum(signature(text) in known for text in texts):
        raise ValueError(
            f"{shared} of the measured prompts are among the {len(known)} on which the certificate "
            f"of {made_for} was made. A certificate corrects rates of other prompts only: use "
            "labels of prompts that are not measured here."
        )


def asked_forms(prompt: Prompt) -> tuple[str, ...]:
    """The texts under which a labels file may hold a prompt."""
    return (prompt.asked, prompt.text, conversation_text(prompt.conversation))


def certificate_table(certificate: Certificate) -> list[tuple[str, ...]]:
    """The certificate's cells as rows of text under `TABLE_HEAD`, shares in per cent with their
    intervals."""
    return [TABLE_HEAD, *(cell_texts(cell) for cell in certificate.cells)]


def cell_texts(cell: Cell) -> tuple[str, ...]:
    """One cell as a row of the table."""
    shares = (cell.agreement, cell.agreement_three, cell.precision, cell.recall, cell.specificity)
    two, three, precision, recall, specificity = (number_text(n, 100, ".1f") for n in shares)
    names = (cell.model or "all models", cell.kind or "both kinds", str(cell.n), str(cell.unscored))
    kappa, bias = number_text(cell.kappa, 1, ".3f"), number_text(cell.bias_points, 1, "+.1f")
    return (*names, two, three, kappa, precision, recall, specificity, bias)


def number_text(found: CellNumber, scale: float, form: str) -> str:
    """`90.0 [85.1, 93.4]`, or a dash if the number is not known."""
    if found.value is None:
        return "–"
    if found.low is None or found.high is None:
        return f"{found.value * scale:{form}}"
    ends = f"[{found.low * scale:{form}}, {found.high * scale:{form}}]"
    return f"{found.value * scale:{form}} {ends}"


def read_certificate(path: str | Path) -> Certificate:
    """A certificate from its JSON file; ValueError names its first fault."""
    file = Path(path)
    if not is_file(file):
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
