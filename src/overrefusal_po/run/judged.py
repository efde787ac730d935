"""Completions + judge -> verdicts, in a file that grows and goes on after a kill.

    verdicts = resumable_verdicts(folder / "verdicts.jsonl", judge, prompts, completions)

One file of a run folder keeps the verdicts of all slow judges (a model, a server) on all
completions. Quick judges are asked again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

from overrefusal_po.judges import Judge
from overrefusal_po.records import Completion, Prompt, Verdict, content_id
from overrefusal_po.run.appender import Appender, rows_if_any


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

    What is judged is known by the whole conversation and the response. A resumed run cuts the same
    chunks, so a judge model sees the same batches.
    """
    if not isinstance(judge, SlowJudge):
        return fresh_verdicts(judge, prompts, completions)
    pairs = zip(prompts, completions, strict=True)
    scorable = list({c.id: (p, c) for p, c in pairs if c.error is None}.values())
    keys = {c.id: judged_key(p, c) for p, c in scorable}
    with Appender(path, Verdict, keep=False) as file:
        found = {
            v.completion_id: v.model_copy(update={"judged": None})
            for v in kept_verdicts(path, judge)
            if v.judged == keys.get(v.completion_id)
        }
        if isinstance(judge, RemoteJudge):
            judge.answered |= any(v.unscored is None for v in found.values())
        for start in range(0, len(scorable), judge.keep_every):
            chunk = scorable[start : start + judge.keep_every]
            missing = [(p, c) for p, c in chunk if c.id not in found]
            for verdict in judge.score([p for p, _ in missing], [c for _, c in missing]):
                found[verdict.completion_id] = verdict
                if not may_change(verdict, judge):
                    key = keys[verdict.completion_id]
                    file.add(verdict.model_copy(update={"judged": key}))
    return [found[c.id] if c.error is None else no_verdict(judge, c) for c in completions]


def judged_key(prompt: Prompt, completion: Completion) -> str:
    """A hash of what a judge reads: the conversation and the response."""
    return content_id([(m.role, m.content) for m in prompt.conversation], completion.text)


def may_change(verdict: Verdict, judge: Judge) -> bool:
    """Whether another try may give another verdict, if the server gave no reply for example."""
    if not isinstance(judge, RetryingJudge) or verdict.unscored is None:
        return False
    return verdict.unscored.startswith(judge.asked_again)


def kept_verdicts(path: Path, judge: Judge) -> Iterator[Verdict]:
    """The verdicts in `path` by a judge of this name and version."""
    for row in rows_if_any(path):
        if (row["judge"], row["version"]) == (judge.name, judge.version):
            yield Verdict.model_validate(row)


def fresh_verdicts(
    judge: Judge, prompts: Sequence[Prompt], completions: Sequence[Completion]
) -> list[Verdict]:
    """A verdict for each completion. The judge never sees a failed completion, which it might take
    for an empty answer; that one is unscored."""
    pairs = zip(prompts, completions, strict=True)
    scorable = [(p, c) for p, c in pairs if c.error is None]
    verdicts = iter(judge.score([p for p, _ in scorable], [c for _, c in scorable]))
    return [next(verdicts) if c.error is None else no_verdict(judge, c) for c in completions]


def no_verdict(judge: Judge, completion: Completion) -> Verdict:
    """The unscored verdict on a failed completion."""
    why = f"no completion: {completion.error}"
    return Verdict(
        completion_id=completion.id, judge=judge.name, version=judge.version, unscored=why
    )
