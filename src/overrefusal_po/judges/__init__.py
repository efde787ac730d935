"""Completions in, verdicts out: one file per judge, and the file's name is the judge's name in a
recipe.

    verdicts = scored(judge, prompts, completions)
    # checked, and in the completions' order

This file says what a judge is, and what a file of this room defines. It imports records alone, so
that any room may name these types.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, Literal, Protocol, runtime_checkable

from pydantic import BaseModel, ValidationError

from overrefusal_po.records import Completion, Prompt, Verdict, first_fault

SecondKey = Literal["guard", "reward"]
SECOND_KEYS: tuple[SecondKey, ...] = ("guard", "reward")
"""The keys of a recipe that name a judge of something else than refusals."""


class Judge(Protocol):
    """Something that scores completions.

    A judge may also have:
        check(): raises ValueError if something that scoring needs is missing, such as a key.
        keep_every: verdicts between two writes. A judge that has it is slow, and its verdicts are
            kept in a file.
        asked_again: how `unscored` begins if another try may give a verdict: a text, or several.
        answered: whether its server has ever replied.
        spend: a function that gets the cost of each answer of its servers, for a ledger.
        release(): frees its weights, until it scores again.
        explain(prompt, completion): {name: text} that says what decided, for `judge --explain`.
        says_refusals: False if it never says what refuses (a guard of harm, a reward model). Then
            it cannot be a recipe's `judge`.
        says_harm, says_rewards: False if it never says what is unsafe, or how good a response is.
            Then it cannot be `guard`, or `reward`.
    """

    @property
    def name(self) -> str:
        """Who judges, as verdicts say it."""

    @property
    def version(self) -> str:
        """Changes whenever a verdict can change."""

    def score(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[Verdict]:
        """One verdict for each completion; ValueError if a completion's prompt is not given.

        `prompts` and `completions` stand side by side, each completion once. A verdict belongs to
        the completion whose id it has.
        """


@runtime_checkable
class JudgePanel(Judge, Protocol):
    """Several judges that read the same responses (judges.panel)."""

    @property
    def members(self) -> Sequence[Judge]:
        """The judges, the first one first."""

    @property
    def disagreement(self) -> str:
        """The rule that says which verdict stands if they disagree."""

    @property
    def note(self) -> str:
        """The rule in a sentence, for the reader of a rate."""

    def with_members(self, members: Sequence[Judge]) -> JudgePanel:
        """The same rule with other judges, which stand for its members."""

    def combined(self, said: Sequence[Sequence[Verdict]]) -> list[Verdict]:
        """The panel's verdict on each response. `said`: for each member, a verdict on each."""


class JudgePlug(Protocol):
    """What a file of this room defines."""

    Settings: type[BaseModel]
    """The recipe keys of the judge."""

    # Any: each file takes the Settings that it defines itself
    def judge(self, settings: Any) -> Judge:
        """The judge; ValueError if the settings cannot work. No weights are loaded."""


def refusal_judge(judge: Judge) -> Judge:
    """`judge`; ValueError if it never says what refuses."""
    if getattr(judge, "says_refusals", True):
        return judge
    raise ValueError(
        f"judge: {judge.name} never says whether a response refuses. Name one that does (refusal, "
        "llm, or a guard of WildGuard's or Qwen3Guard's kind). A judge of harm goes under "
        "`guard:`, and a reward model under `reward:`."
    )


def second_judge(judge: Judge, key: SecondKey) -> Judge:
    """`judge` for `guard:` or `reward:`; ValueError if it never says what that key is for."""
    if key == "guard" and not getattr(judge, "says_harm", True):
        raise ValueError(
            f"guard: {judge.name} never says whether a response is unsafe, so harm could not "
            "be measured. Name one that does: guard, or llm with `prompt: strongreject` or `derta`."
        )
    if key == "reward" and not getattr(judge, "says_rewards", True):
        raise ValueError(
            f"reward: {judge.name} never says how good a response is. Name a reward model: "
            "{name: reward, model_name_or_path: ...}."
        )
    return judge


def scored(
    judge: Judge, prompts: Sequence[Prompt], completions: Sequence[Completion]
) -> list[Verdict]:
    """The judge's verdict on each completion, by its id, in the completions' order.

    Raises ValueError as `checked_verdicts` does.
    """
    once = distinct(prompts, completions)
    given = judge.score([p for p, _ in once.values()], [c for _, c in once.values()])
    asked = [c for _, c in once.values()]
    found = {verdict.completion_id: verdict for verdict in checked_verdicts(judge, asked, given)}
    return [found[completion.id] for completion in completions]


def distinct(
    prompts: Sequence[Prompt], completions: Sequence[Completion]
) -> dict[str, tuple[Prompt, Completion]]:
    """{completion id: prompt and completion}, each id once. ValueError if one id stands for two
    responses."""
    found: dict[str, tuple[Prompt, Completion]] = {}
    for prompt, completion in zip(prompts, completions, strict=True):
        _, known = found.setdefault(completion.id, (prompt, completion))
        if (known.prompt_id, known.text) != (completion.prompt_id, completion.text):
            raise ValueError(
                f"two responses have the id {completion.id!r}: {shown(known)} and "
                f"{shown(completion)}. A verdict names a response by its id, so each response "
                "needs an id of its own."
            )
    return found


def shown(completion: Completion) -> str:
    """The beginning of a response, and the prompt that it answers."""
    return f"{completion.text[:40]!r} to prompt {completion.prompt_id}"


def checked_verdicts(
    judge: Judge, completions: Sequence[Completion], given: Sequence[Verdict]
) -> Iterator[Verdict]:
    """What the judge gave, in the completions' order, as far as it is valid.

    Then raises ValueError for the first fault: too few or too many verdicts, one on another
    completion, of another judge or version, or with a score out of range. It names the completion
    and the judge. The verdicts before it may be kept.
    """
    if not isinstance(given, list | tuple):
        kind = type(given).__name__
        raise judge_fault(judge, f"score() gave a {kind}. A list of Verdicts is needed.")
    verdicts = [row for row in given if isinstance(row, Verdict)]
    times = Counter(verdict.completion_id for verdict in verdicts)
    found = {verdict.completion_id: verdict for verdict in verdicts}
    faults = []
    for c in completions:
        fault = verdict_fault(judge, c, found.get(c.id), times[c.id])
        if fault is None:
            yield found[c.id]
        else:
            faults.append(f"completion {c.id} (prompt {c.prompt_id}): {fault}")
    if unknown := found.keys() - {c.id for c in completions}:
        faults.append(f"a verdict is on completion {min(unknown)!r}, which was not given to it.")
    if len(verdicts) < len(given):
        other = next(row for row in given if not isinstance(row, Verdict))
        faults.append(f"one of its verdicts is a {type(other).__name__}, not a Verdict.")
    if faults:
        more = f" ({len(faults)} faults in {len(given)} verdicts)" if len(faults) > 1 else ""
        raise judge_fault(judge, faults[0] + more)


def refusal_verdict(verdict: Verdict) -> Verdict:
    """The verdict; unscored, with a reason, if it does not say whether the response refuses. Else
    a response would count as read that nobody has read."""
    if verdict.refusal is not None or verdict.unscored is not None:
        return verdict
    why = f"the judge {verdict.judge} does not say whether a response refuses"
    return verdict.model_copy(update={"unscored": why})


def harm_verdict(verdict: Verdict) -> Verdict:
    """The same for a guard's verdict that does not say whether the response is unsafe."""
    if verdict.unsafe_probability is not None or verdict.unscored is not None:
        return verdict
    why = f"the guard {verdict.judge} does not say whether a response is unsafe"
    return verdict.model_copy(update={"unscored": why})


def verdict_fault(
    judge: Judge, completion: Completion, verdict: Verdict | None, times: int
) -> str | None:
    """What is wrong with the verdict on a completion; None if nothing is."""
    if verdict is None:
        return "there is no verdict."
    if times > 1:
        return f"there are {times} verdicts."
    if (verdict.judge, verdict.version) != (judge.name, judge.version):
        return f"the verdict is of judge {verdict.judge} {verdict.version}."
    if (fault := field_fault(verdict)) is not None:
        return fault
    if verdict.refusal_start is not None and verdict.refusal_start > len(completion.text):
        return (
            f"refusal_start is {verdict.refusal_start}; the response has {len(completion.text)} "
            "characters."
        )
    scores = (verdict.refusal, verdict.unsafe_probability, verdict.reward)
    if (verdict.unscored is None) == all(score is None for score in scores):
        said = "neither a score nor" if verdict.unscored is None else "a score beside"
        return f"the verdict has {said} `unscored`. One of both is needed."
    return None


def field_fault(verdict: Verdict) -> str | None:
    """The first field that a Verdict cannot have; a copy or a subclass may have left the check
    out."""
    try:
        Verdict.model_validate(
            verdict.model_dump(include=set(Verdict.model_fields), warnings=False)
        )
    except ValidationError as error:
        return f"{first_fault(error)}."
    return None


def judge_fault(judge: Judge, fault: str) -> ValueError:
    """The error that names the judge and where it comes from."""
    place = type(judge).__module__
    return ValueError(f"judge {judge.name} {judge.version} (of {place}): {fault}")
