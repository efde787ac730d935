"""Completions + judge -> verdicts, in a file that grows and goes on after a kill.

    verdicts = resumable_verdicts(folder / "verdicts.jsonl", judge, prompts, completions)

One file of a run folder keeps the verdicts of all slow judges (a model, a server) on all
completions. Quick judges are asked again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

from pydantic import ValidationError

from overrefusal_po.judges import Judge, checked_verdicts, distinct, scored
from overrefusal_po.records import Completion, Prompt, Verdict, first_fault
from overrefusal_po.run.appender import Appender, numbered_rows


@runtime_checkable
class SlowJudge(Judge, Protocol):
    """A judge whose verdicts are kept."""

    keep_every: int
    """Verdicts are written after so many completions."""


@runtime_checkable
class RetryingJudge(Judge, Protocol):
    """A judge that may give no verdict for a reason that passes."""

    asked_again: str
    """An unscored verdict that begins so is not kept: another try may give a verdict."""


@runtime_checkable
class RemoteJudge(Judge, Protocol):
    """A judge behind a server."""

    answered: bool
    """Whether the server has answered before. If it then refuses an item, the set-up is valid."""


def resumable_verdicts(
    path: Path, judge: Judge, prompts: Sequence[Prompt], completions: Sequence[Completion]
) -> list[Verdict]:
    """A verdict for each completion. The verdicts of a slow judge are kept in `path`, and none of
    them is asked for again.

    Completions are known by their ids. A resumed run cuts the same chunks, so a judge model sees
    the same batches.
    """
    if not isinstance(judge, SlowJudge):
        return fresh_verdicts(judge, prompts, completions)
    once = distinct(prompts, completions).values()
    scorable = [(p, c) for p, c in once if c.error is None]
    with Appender(path, Verdict, keep=False) as file:
        found = kept_verdicts(path, judge)
        if isinstance(judge, RemoteJudge):
            judge.answered |= any(v.unscored is None for v in found.values())
        for start in range(0, len(scorable), judge.keep_every):
            chunk = scorable[start : start + judge.keep_every]
            missing = [(p, c) for p, c in chunk if c.id not in found]
            if not missing:
                continue
            given = judge.score([p for p, _ in missing], [c for _, c in missing])
            for verdict in checked_verdicts(judge, [c for _, c in missing], given):
                found[verdict.completion_id] = verdict
                if not may_change(verdict, judge):
                    file.add(verdict)
    return [found[c.id] if c.error is None else no_verdict(judge, c) for c in completions]


def may_change(verdict: Verdict, judge: Judge) -> bool:
    """Whether another try may give another verdict, if the server gave no reply for example."""
    if not isinstance(judge, RetryingJudge) or verdict.unscored is None:
        return False
    return verdict.unscored.startswith(judge.asked_again)


def kept_verdicts(path: Path, judge: Judge) -> dict[str, Verdict]:
    """{completion id: verdict} of the verdicts in `path` by this judge; other judges' may stand
    beside them.

    Raises ValueError if the file holds verdicts of another version of this judge, or two that
    differ on one completion.
    """
    found: dict[str, Verdict] = {}
    for number, row in numbered_rows(path):
        if row.get("judge") != judge.name:
            continue
        verdict = kept_verdict(row, f"{path}, line {number}")
        if verdict.version != judge.version:
            raise ValueError(
                f"{path}, line {number}: a verdict of {judge.name} {verdict.version}, and this run "
                f"has version {judge.version}. Verdicts of two versions are not mixed: delete the "
                "file to ask again, or choose another run_dir."
            )
        if found.setdefault(verdict.completion_id, verdict) != verdict:
            raise ValueError(
                f"{path}, line {number}: another verdict of {judge.name} on completion "
                f"{verdict.completion_id} stands in an earlier line. Delete the file to ask again."
            )
    return found


def kept_verdict(row: Mapping[str, object], where: str) -> Verdict:
    """A line of a verdicts file; ValueError if it is no Verdict."""
    try:
        return Verdict.model_validate(row)
    except ValidationError as error:
        raise ValueError(
            f"{where}: not a Verdict: {first_fault(error)}. Delete the line to ask again."
        ) from None


def fresh_verdicts(
    judge: Judge, prompts: Sequence[Prompt], completions: Sequence[Completion]
) -> list[Verdict]:
    """A verdict for each completion. The judge never sees a failed completion, which it might take
    for an empty answer; that one is unscored."""
    pairs = zip(prompts, completions, strict=True)
    scorable = [(p, c) for p, c in pairs if c.error is None]
    verdicts = iter(scored(judge, [p for p, _ in scorable], [c for _, c in scorable]))
    return [next(verdicts) if c.error is None else no_verdict(judge, c) for c in completions]


def no_verdict(judge: Judge, completion: Completion) -> Verdict:
    """The unscored verdict on a failed completion."""
    why = f"no completion: {completion.error}"
    return Verdict(
        completion_id=completion.id, judge=judge.name, version=judge.version, unscored=why
    )
