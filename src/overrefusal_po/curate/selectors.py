"""Several answers to one prompt -> the chosen one, or why none is chosen. Pure: no model, no file.

    select_answer(prompt, candidates, by="reward", seed=0)      # Selected(text, why_not, verdicts)

After POROver's studies (a) and (b), which overgenerate and keep one completion by a criterion. Ours
is the test that an answer has to pass first (`why_not_chosen`). An answer to a harmless prompt has
to answer it; an answer to a harmful one has to refuse it in full. None may be degenerate, cut in
its first sentence, or unsafe by the guard's verdict.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

from overrefusal_po.pairs.make import side_text, teacher_answer, unsafe
from overrefusal_po.records import Completion, Prompt, Verdict, content_id

Criterion = Literal["first", "random", "reward", "safety"]


class Candidate(NamedTuple):
    """An answer, and the verdicts of refusal judge, guard and reward judge on it (None without
    one)."""

    completion: Completion
    refusal: Verdict
    guard: Verdict | None = None
    reward: Verdict | None = None


class Selected(NamedTuple):
    """The chosen text; or "" and why there is none. `verdicts`: of guard and reward judge on the
    text."""

    text: str
    why_not: str
    verdicts: tuple[Verdict, ...] = ()


def usable(
    prompt: Prompt, answer: Completion, verdict: Verdict, *, openings: bool = False
) -> tuple[str, str]:
    """(the text that may be chosen, "") or ("", why not), by the refusal judge's verdict alone.
    With `openings` the text may be cut (`side_text`)."""
    if prompt.kind != "harmful" or verdict.unscored is not None:
        return teacher_answer(answer, verdict, openings=openings)
    if verdict.refusal != "full":
        return "", "the answer does not refuse in full"
    if verdict.degenerate:
        return "", "the refusal is degenerate"
    text = side_text(answer, openings=openings)
    return (text, "") if text else ("", "the refusal is cut in its first sentence")


def why_not_chosen(
    prompt: Prompt, candidate: Candidate, by: Criterion, *, openings: bool = False
) -> str:
    """Why a candidate may not be chosen; "" if it may."""
    _, why_not = usable(prompt, candidate.completion, candidate.refusal, openings=openings)
    if why_not:
        return why_not
    if candidate.guard is not None and candidate.guard.unsafe_probability is None:
        return f"the guard says nothing: {candidate.guard.unscored}"
    if candidate.guard is not None and unsafe(candidate.guard):
        return "the answer is unsafe"
    if by == "reward" and (candidate.reward is None or candidate.reward.reward is None):
        return f"no reward: {candidate.reward.unscored if candidate.reward else 'not scored'}"
    return ""


def select_answer(
    prompt: Prompt,
    candidates: Sequence[Candidate],
    *,
    by: Criterion,
    seed: int,
    openings: bool = False,
) -> Selected:
    """The best of the candidates that pass; of equal ones, the one that was drawn first.

    If none passes, `why_not` is about the first candidate.
    """
    reasons = [why_not_chosen(prompt, one, by, openings=openings) for one in candidates]
    passing = [c for c, why_not in zip(candidates, reasons, strict=True) if not why_not]
    if not passing:
        return Selected("", reasons[0])
    best = min(passing, key=lambda c: (rank(prompt, c, by, seed=seed), c.completion.sample))
    verdicts = tuple(v for v in (best.guard, best.reward) if v is not None)
    return Selected(side_text(best.completion, openings=openings), "", verdicts)


def rank(prompt: Prompt, candidate: Candidate, by: Criterion, *, seed: int) -> float:
    """A number that is smallest for the best candidate."""
    if by == "random":
        return int(content_id(seed, "select", prompt.id, candidate.completion.sample), 16)
    if by == "reward":
        assert candidate.reward is not None and candidate.reward.reward is not None
        return -candidate.reward.reward
    if by == "safety":
        assert candidate.guard is not None and candidate.guard.unsafe_probability is not None
        return candidate.guard.unsafe_probability
    return candidate.completion.sample
