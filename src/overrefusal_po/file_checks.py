"""`check FILE`: what is wrong with which row of a file of pairs or prompts.

check_file(Path("pairs.jsonl"))      # ([{"id": "q7", "check": "chosen_refuses", ...}], True)
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from overrefusal_po.judges import Judge
from overrefusal_po.pairs.file_notes import without_anchor, without_kind
from overrefusal_po.pairs.findings import Finding
from overrefusal_po.pairs.firewall import benchmark_finding, contamination
from overrefusal_po.pairs.lint import lint
from overrefusal_po.pairs.response_checks import response_findings
from overrefusal_po.pairs.row_conflicts import prompt_conflicts, prompt_id
from overrefusal_po.plugins import find_source, make_refusal_judge
from overrefusal_po.prompts import read_pairs, read_responses, read_source
from overrefusal_po.recipe.overrides import parse_overrides, set_dotted
from overrefusal_po.records import Origin
from overrefusal_po.report import terminal
from overrefusal_po.sources._forms import Form, rows_form
from overrefusal_po.sources._local import Rows, local_rows
from overrefusal_po.sources._turns import is_blank
from overrefusal_po.sources.file import Settings


def check_file(path: Path, overrides: Sequence[str] = ()) -> tuple[list[dict[str, object]], bool]:
    """(every finding about a file of rows, whether one of them stops): linter and benchmark
    firewall. `overrides` are those of a recipe's `data` for files (columns, ignore, limits), and
    `judge`, which says which sides refuse."""
    given = file_keys(overrides)
    judge = make_refusal_judge(given["judge"])
    spec = {"kind": "general", **given["data"], "name": "file", "path": str(path)}
    settings = find_source(spec).settings
    assert isinstance(settings, Settings)
    bare: list[bool] = []  # of each row, whether it says no kind
    rows = watched(local_rows(settings.path, settings.limits), settings, bare)
    form = rows_form(rows, settings, settings.path)
    if form == "responses":
        return finding_rows(response_findings(read_responses(spec, None), judge))
    said = form == "pairs" or "kind" in given["data"]
    notes = [] if said else [*without_kind(sum(bare), len(bare))]
    return check_pairs_or_prompts(spec, form, judge, notes)


def watched(rows: Rows, settings: Settings, bare: list[bool]) -> Rows:
    """The rows; `bare` gets for each whether it does not say what kind its prompt is."""
    names = settings.columns.get("kind", "kind"), settings.columns.get("label", "label")
    for place, row in rows:
        bare.append(all(is_blank(row.get(name)) for name in names))
        yield place, row


def check_rows(path: Path, as_json: bool, overrides: Sequence[str]) -> None:
    """Prints the findings about a file of pairs or prompts; exit code 2 if one stops."""
    found, stops = check_file(path, overrides)
    for row in found:
        if as_json:
            terminal.say_json(row)
        else:
            terminal.say("  ".join(str(value) for value in row.values()))
    if not as_json:
        number = "1 finding" if len(found) == 1 else f"{len(found)} findings"
        end = ", and a training would stop." if stops else "."
        terminal.say(f"{path}: {number}{end}")
    if stops:
        sys.exit(2)


# Any: a plug checks the judge's keys, and the source those of `data`
def file_keys(tokens: Sequence[str]) -> dict[str, Any]:
    """`data` and `judge` of overrides; ValueError for any other override."""
    values: dict[str, Any] = {"data": {}, "judge": "refusal"}
    for key, value in parse_overrides(tokens):
        if key != "judge" and not key.startswith(("data.", "judge.")):
            raise ValueError(
                f"--{key} is nothing that a file of rows takes. Allowed are --judge=NAME and the "
                "keys of `data` for files, such as --data.columns.prompt=question or "
                "--data.limit_mb=4096."
            )
        set_dotted(values, key, value)
    return values


def check_pairs_or_prompts(
    spec: Mapping[str, object], form: Form, judge: Judge, notes: Sequence[Finding]
) -> tuple[list[dict[str, object]], bool]:
    """(the findings about a file of pairs or of prompts, `notes` last, whether one of them
    stops)."""
    rows: dict[str, list[tuple[str, Origin | None]]] = defaultdict(list)
    if form == "prompts":
        prompts = read_source(spec, None)
        findings = list(prompt_conflicts(prompts))
        for prompt in prompts:
            rows[prompt.id].append((prompt_id(prompt), prompt.origin))
    else:
        pairs = read_pairs(spec, None)
        findings = [*lint(pairs, judge).findings, *without_anchor(pairs)]
        prompts = [pair.prompt for pair in pairs]
        for pair in pairs:
            rows[pair.prompt.id].append((pair.id, pair.origin))
    once = {prompt.id: prompt for prompt in prompts}.values()
    findings += [
        benchmark_finding(hit, own, origin)
        for hit in contamination(once)
        for own, origin in rows[hit.id]
    ]
    return finding_rows([*findings, *notes])


def finding_rows(findings: Sequence[Finding]) -> tuple[list[dict[str, object]], bool]:
    """(the findings as `check` prints them, whether one of them stops a training)."""
    stops = any(finding.severity == "error" for finding in findings)
    return [finding_row(finding) for finding in findings], stops


def finding_row(finding: Finding) -> dict[str, object]:
    """A finding as `check --json` prints it; one about a whole set has no file and line."""
    return {name: value for name, value in finding._asdict().items() if value is not None}
