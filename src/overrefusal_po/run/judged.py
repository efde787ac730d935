"""Completions + judge -> verdicts, in a file that grows and goes on where a killed run stopped.

    verdicts = judged(folder / "verdicts.jsonl", judge, prompts, completions)

Verdicts of slow judges (a model, a server) are kept in one file for all judges and completions of a
run folder. Quick judges are asked again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from overrefusal_po.records import Completion, Prompt, Verdict
from overrefusal_po.run.complete import rows_of
from overrefusal_po.run.folder import Appender


def judged(
    path: Path, judge: Any, prompts: Sequence[Prompt], completions: Sequence[Completion]
) -> list[Verdict]:
    """`scored`, but verdicts of a slow judge are kept in `path`, and none that is there is asked
    for again.

    A judge is slow that has `keep_every`: after how many completions its verdicts are written.
    Unscored ones that begin with its `asked_again` (the server gave no reply, say) are not written:
    another try may mend them. Completions are known by their ids. Chunks are cut alike in a run
    that goes on, so that a judge model's batches stay the same.
    """
    every = getattr(judge, "keep_every", None)
    if every is None:
        return scored(judge, prompts, completions)
    good = list(
        {
            c.id: (p, c) for p, c in zip(prompts, completions, strict=True) if c.error is None
        }.values()
    )
    with Appender(path, Verdict, keep=False) as file:
        found = {v.completion_id: v for v in kept_verdicts(path, judge)}
        if hasattr(
            judge, "answered"
        ):  # else a server that forbids the next item would be a wrong set-up, at every try
            judge.answered |= any(v.unscored is None for v in found.values())
        for start in range(0, len(good), every):
            missing = [(p, c) for p, c in good[start : start + every] if c.id not in found]
            for verdict in judge.score([p for p, _ in missing], [c for _, c in missing]):
                found[verdict.completion_id] = verdict
                if not (verdict.unscored or "").startswith(getattr(judge, "asked_again", ())):
                    file.add(verdict)
    return [found[c.id] if c.error is None else unscored(judge, c) for c in completions]


def kept_verdicts(path: Path, judge: Any) -> Iterator[Verdict]:
    """What a judge of this very name and version has said before."""
    for row in rows_of(path):
        if (row["judge"], row["version"]) == (judge.name, judge.version):
            yield Verdict.model_validate(row)


def scored(
    judge: Any, prompts: Sequence[Prompt], completions: Sequence[Completion]
) -> list[Verdict]:
    """A verdict for each completion; one without a response is unscored, and no judge takes it for
    an empty answer."""
    good = [(p, c) for p, c in zip(prompts, completions, strict=True) if c.error is None]
    verdicts = iter(judge.score([p for p, _ in good], [c for _, c in good]))
    return [next(verdicts) if c.error is None else unscored(judge, c) for c in completions]


def unscored(judge: Any, completion: Completion) -> Verdict:
    """The verdict on a completion that is none."""
    why = f"no completion: {completion.error}"
    return Verdict(
        completion_id=completion.id, judge=judge.name, version=judge.version, unscored=why
    )
