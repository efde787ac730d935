"""Completions + judge -> verdicts, in a file that grows and goes on after a kill.

    verdicts = resumable_verdicts(folder / "verdicts.jsonl", judge, prompts, completions)

One file of a run folder keeps the verdicts of all slow judges (a model, a server) on all
completions. Quick judges are asked again. Each member of a panel keeps its own verdicts there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol, runtime_checkable

from pydantic import ValidationError

from overrefusal_po.engines import Engine
from overrefusal_po.engines._costs import Cost
from overrefusal_po.judges import Judge, JudgePanel, checked_verdicts, distinct, scored
from overrefusal_po.plugins import make_refusal_judge
from overrefusal_po.recipe.panels import JudgesGiven
from overrefusal_po.records import (
    Completion,
    Outcome,
    Prompt,
    Sampling,
    Verdict,
    content_id,
    first_fault,
)
from overrefusal_po.run.appender import Appender, numbered_rows
from overrefusal_po.run.ledger import VERDICTS_LEDGER
from overrefusal_po.run.pace import spoken


@runtime_checkable
class SlowJudge(Judge, Protocol):
    """A judge whose verdicts are kept."""

    keep_every: int
    """Verdicts are written after so many completions."""


@runtime_checkable
class RetryingJudge(Judge, Protocol):
    """A judge that may give no verdict for a reason that passes."""

    asked_again: str | tuple[str, ...]
    """An unscored verdict that begins so (with one of these) is not kept: another try may give a
    verdict."""


@runtime_checkable
class PaidJudge(Judge, Protocol):
    """A judge that says what its requests cost."""

    spend: Callable[[Cost], None]
    """Gets the cost of each answer before its verdict."""


@runtime_checkable
class RemoteJudge(Judge, Protocol):
    """A judge behind a server."""

    answered: bool
    """Whether the server has answered before. If it then refuses an item, the set-up is valid."""


def members_of(judge: Judge) -> Sequence[Judge]:
    """The judges of a panel; a judge of its own is its only one."""
    return judge.members if isinstance(judge, JudgePanel) else (judge,)


def is_slow(judge: Judge) -> bool:
    """Whether verdicts of the judge are kept: those of a panel, if those of a member are."""
    return any(isinstance(member, SlowJudge) for member in members_of(judge))


def release_judge(judge: Judge) -> None:
    """Frees the weights of a judge in process; of a panel, those of its members."""
    for member in members_of(judge):
        if hasattr(member, "release"):
            member.release()


def resumable_verdicts(
    path: Path, judge: Judge, prompts: Sequence[Prompt], completions: Sequence[Completion]
) -> list[Verdict]:
    """A verdict for each completion. The verdicts of a slow judge are kept in `path`, and none of
    them is asked for again.

    What is judged is known by the whole conversation and the response. A resumed run cuts the same
    chunks, so a judge model sees the same batches. What a paid judge costs is kept beside `path`,
    in verdicts.ledger.jsonl.
    """
    if isinstance(judge, JudgePanel):
        return panel_verdicts(path, judge, prompts, completions)
    if not isinstance(judge, SlowJudge):
        return fresh_verdicts(judge, prompts, completions)
    once = distinct(prompts, completions).values()
    scorable = [(p, c) for p, c in once if c.error is None]
    keys = {c.id: judged_key(p, c) for p, c in scorable}
    with Appender(path, Verdict, keep=False) as file, kept_costs(path, judge):
        found = kept_verdicts(path, judge, keys)
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
                    key = keys[verdict.completion_id]
                    file.add(verdict.model_copy(update={"judged": key}))
    return [found[c.id] if c.error is None else no_verdict(judge, c) for c in completions]


@contextmanager
def kept_costs(path: Path, judge: Judge) -> Iterator[None]:
    """Keeps what a paid judge costs in the ledger beside the verdicts' `path`."""
    if not isinstance(judge, PaidJudge):
        yield
        return
    with Appender(path.with_name(VERDICTS_LEDGER), Cost, keep=False) as ledger:
        before, judge.spend = judge.spend, ledger.add
        try:
            yield
        finally:
            judge.spend = before


def panel_verdicts(
    path: Path, panel: JudgePanel, prompts: Sequence[Prompt], completions: Sequence[Completion]
) -> list[Verdict]:
    """A panel's verdict for each completion, one member after the other. Slow members keep theirs
    in `path`, as they do alone."""
    said = [resumable_verdicts(path, judge, prompts, completions) for judge in panel.members]
    both = zip(panel.combined(said), completions, strict=True)
    return [verdict if c.error is None else no_verdict(panel, c) for verdict, c in both]


def judged_key(prompt: Prompt, completion: Completion) -> str:
    """A hash of what a judge reads: the conversation and the response."""
    return content_id([(m.role, m.content) for m in prompt.conversation], completion.text)


def may_change(verdict: Verdict, judge: Judge) -> bool:
    """Whether another try may give another verdict, if the server gave no reply for example."""
    if not isinstance(judge, RetryingJudge) or verdict.unscored is None:
        return False
    return verdict.unscored.startswith(judge.asked_again)


def kept_verdicts(path: Path, judge: Judge, keys: Mapping[str, str]) -> dict[str, Verdict]:
    """{completion id: verdict} of the verdicts in `path` by this judge on what is judged now; other
    judges' and others' may stand beside them. `keys`: {completion id: `judged_key`}.

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
        if verdict.judged != keys.get(verdict.completion_id):
            continue
        verdict = verdict.model_copy(update={"judged": None})
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


def fresh_outcomes(
    engine: Engine, judge: Judge, prompts: Sequence[Prompt], sampling: Sampling, *, label: str
) -> list[Outcome]:
    """What an engine answers and a judge says of it, in the order of the prompts; nothing is
    kept. If it takes long, the log says under `label` how far it is."""
    drawn = spoken(engine.complete(prompts, sampling), label, total=len(prompts), short=False)
    said = {c.prompt_id: c for c in drawn}
    completions = [said[p.id] for p in prompts]
    return paired_outcomes(prompts, completions, fresh_verdicts(judge, prompts, completions))


def paired_outcomes(
    prompts: Sequence[Prompt], completions: Sequence[Completion], verdicts: Sequence[Verdict]
) -> list[Outcome]:
    """Each prompt with its response and the verdict on it."""
    rows = zip(prompts, completions, verdicts, strict=True)
    return [Outcome(prompt=p, completion=c, verdict=v) for p, c, v in rows]


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


def shared_judge(spec: JudgesGiven) -> Judge:
    """The judge of a recipe. The verdicts of a slow judge are kept while the program runs: the same
    pairs are checked before a run, and again when they are read."""
    found = make_refusal_judge(spec)
    if isinstance(found, JudgePanel):
        return found.with_members([remembering(member) for member in found.members])
    return remembering(found)


def remembering(judge: Judge) -> Judge:
    """The judge; a slow one is not asked twice about a completion."""
    return RememberingJudge(judge) if isinstance(judge, SlowJudge) else judge


Asked = tuple[str, str]
"""A completion's id and its `judged_key`: in another file the same id may stand for another
text."""

REMEMBERED: dict[tuple[str, str], dict[Asked, Verdict]] = {}
"""{(judge's name, version): {what was judged: verdict}}."""


class RememberingJudge:
    """A slow judge that is not asked twice about a completion."""

    def __init__(self, judge: Judge) -> None:
        self.judge, self.name, self.version = judge, judge.name, judge.version

    def score(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[Verdict]:
        """One verdict for each completion, in their order."""
        known = REMEMBERED.setdefault((self.name, self.version), {})
        pairs = list(zip(prompts, completions, strict=True))
        keys: list[Asked] = [(c.id, judged_key(p, c)) for p, c in pairs]
        missing = {key: both for key, both in zip(keys, pairs, strict=True) if key not in known}
        asked = scored(
            self.judge, [p for p, _ in missing.values()], [c for _, c in missing.values()]
        )
        fresh = dict(zip(missing, asked, strict=True))
        known |= {key: v for key, v in fresh.items() if not may_change(v, self.judge)}
        return [known.get(key) or fresh[key] for key in keys]
