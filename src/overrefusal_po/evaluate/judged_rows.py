"""Rows {id, prompt, response} of a file, judged one by one: the command `judge`.

for row in judged_rows(judge, Path("responses.jsonl")):
    print(row)
# {"id": "7", "refusal": "full", "refusal_start": 0, "degenerate": False}
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from overrefusal_po.judges import Judge, scored
from overrefusal_po.records import Completion, Prompt, Sampling, Verdict, read_objects
from overrefusal_po.run.unscored import check_scored


class Responses(NamedTuple):
    """The rows of a file side by side. Several rows may have one id, which is the user's."""

    ids: list[str]
    prompts: list[Prompt]
    completions: list[Completion]


def judged_rows(judge: Judge, file: Path, *, explain: bool = False) -> Iterator[dict[str, object]]:
    """The judge's verdicts on the rows of a file, as `judge` prints them.

    With `explain` each row says what decided; ValueError if the judge cannot. In the end, RunFailed
    if none is scored.
    """
    explaining = explanations(judge) if explain else no_explanation
    rows = read_responses(file)
    verdicts = scored(judge, rows.prompts, rows.completions)
    asked = zip(rows.prompts, rows.completions, strict=True)
    for row_id, verdict, (prompt, completion) in zip(rows.ids, verdicts, asked, strict=True):
        yield {"id": row_id, **verdict_row(verdict), **explaining(prompt, completion)}
    check_scored(verdicts, 1.0, what=f"{judge.name} on {file}", key=None)


def explanations(judge: Judge) -> Callable[[Prompt, Completion], Mapping[str, str]]:
    """The judge's `explain`; ValueError if it has none."""
    explain = getattr(judge, "explain", None)
    if explain is None:
        raise ValueError(
            f"judge {judge.name} does not say what decided. Leave --explain out, or take the judge "
            "refusal."
        )
    found: Callable[[Prompt, Completion], Mapping[str, str]] = explain
    return found


def no_explanation(prompt: Prompt, completion: Completion) -> Mapping[str, str]:
    """Nothing."""
    return {}


def read_responses(file: Path) -> Responses:
    """The rows of a file. Rows without an id have their line's number as id."""
    rows = Responses([], [], [])
    for number, row in read_objects(file):
        missing = [key for key in ("prompt", "response") if not isinstance(row.get(key), str)]
        if missing:
            raise ValueError(
                f"{file}, line {number}: the text {missing[0]!r} is missing. Rows are {{id, "
                f"prompt, response}}."
            )
        prompt = Prompt.of(row["prompt"], kind="general")
        rows.ids.append(str(row.get("id", number)))
        rows.prompts.append(prompt.model_copy(update={"id": f"{number}"}))
        rows.completions.append(
            Completion(
                id=f"{number}",
                prompt_id=f"{number}",
                text=row["response"],
                model="file",
                engine="file",
                sampling=Sampling(),
            )
        )
    return rows


def verdict_row(verdict: Verdict) -> dict[str, object]:
    """A verdict as `judge` prints it behind the id; scores that the judge did not give are left
    out. Of a panel, `members` holds that of each judge."""
    scores = {
        "unsafe_probability": verdict.unsafe_probability,
        "reward": verdict.reward,
        "unscored": verdict.unscored,
    }
    members = {member.judge: verdict_row(member) for member in verdict.members}
    return {
        "refusal": verdict.refusal,
        "refusal_start": verdict.refusal_start,
        "degenerate": verdict.degenerate,
        **{key: value for key, value in scores.items() if value is not None},
        **({"members": members} if members else {}),
    }
