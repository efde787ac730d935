"""Several answers to one prompt -> the one that is chosen, or why none is. Pure: no model, no file.

    selected(prompt, candidates, by="reward", seed=0)       # Selected(text, why_not, verdicts)

After POROver's studies (a) and (b), which overgenerate and keep one completion by a criterion. That
an answer has to pass first (`fault`) is ours: an answer to a harmless prompt answers it, an answer
to a harmful one refuses it in full, none is degenerate or cut in its first sentence, and none is
unsafe where there is a guard.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

from overrefusal_po.pairs.make import teacher_answer, unsafe, whole_sentences
from overrefusal_po.records import Completion, Prompt, Verdict, content_id

By = Literal["first", "random", "reward", "safety"]


class Candidate(NamedTuple):
    """An answer and the verdicts on it: the judge's, the guard's and the reward judge's (None where
    there is none)."""

    completion: Completion
    verdict: Verdict
    guard: Verdict | None = None
    reward: Verdict | None = None


class Selected(NamedTuple):
    """The chosen text, or "" and why there is none. `verdicts`: those of guard and reward judge on
    it."""

    text: str
    why_not: str
    verdicts: tuple[Verdict, ...] = ()


def usable(prompt: Prompt, answer: Completion, verdict: Verdict) -> tuple[str, str]:
    """(the text that may be chosen, "") or ("", why not), as the judge alone has it."""
    if prompt.kind != "harmful" or verdict.unscored is not None:
        return teacher_answer(answer, verdict)
    if verdict.refusal != "full":
        return "", "the answer does not refuse in full"
    if verdict.degenerate:
        return "", "the refusal is degenerate"
    text = whole_sentences(answer)
    return (text, "") if text else ("", "the refusal is cut in its first sentence")


def fault(prompt: Prompt, candidate: Candidate, by: By) -> str:
    """Why a candidate may not be chosen; "" where it may."""
    _, why_not = usable(prompt, candidate.completion, candidate.verdict)
    if why_not:
        return why_not
    if candidate.guard is not None and candidate.guard.unsafe_probability is None:
        return f"the guard says nothing: {candidate.guard.unscored}"
    if candidate.guard is not None and unsafe(candidate.guard):
        return "the answer is unsafe"
    if by == "reward" and (candidate.reward is None or candidate.reward.reward is None):
        return f"no reward: {candidate.reward.unscored if candidate.reward else 'not scored'}"
    return ""


def selected(prompt: Prompt, candidates: Sequence[Candidate], *, by: By, seed: int) -> Selected:
    """The best of the candidates that pass; where two are equal, the one that was drawn first.

    Where none passes, `why_not` is the first candidate's fault.
    """
    faults = [fault(prompt, candidate, by) for candidate in candidates]
    passing = [c for c, why_not in zip(candidates, faults, strict=True) if not why_not]
    if not passing:
        return Selected("", faults[0])
    best = min(passing, key=lambda c: (cost(prompt, c, by, seed), c.completion.sample))
    verdicts = tuple(v for v in (best.guard, best.reward) if v is not None)
    return Selected(whole_sentences(best.completion), "", verdicts)


def cost(prompt: Prompt, candidate: Candidate, by: By, seed: int) -> float:
    """What `selected` makes as small as it can."""
    if by == "random":
        return int(content_id(seed, "select", prompt.id, candidate.completion.sample), 16)
    if by == "reward":
        assert candidate.reward is not None and candidate.reward.reward is not None
        return -candidate.reward.reward
    if by == "safety":
        assert candidate.guard is not None and candidate.guard.unsafe_probability is not None
        return candidate.guard.unsafe_probability
    return candidate.completion.sample
