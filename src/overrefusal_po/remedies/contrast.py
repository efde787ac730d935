"""Contrastive decoding: at the first tokens of a response, what a safety prompt adds is taken away.

    {name: contrast}                                   # AdaCD
    {name: contrast, rule: self, strengths: [0.5], tokens: null}

The model reads each prompt twice: as it is, and behind a system prompt that asks for refusals. What
the second adds to the logits is refusal. `rule: self` subtracts it (Self-CD, Shi et al. 2024, arXiv
2401.17633). `rule: adaptive` adds it if both streams agree, and subtracts it if they do not (AdaCD,
Qi et al. 2026, arXiv 2604.17132): a prompt that is refused anyway stays refused. `model.contrast`
has the formulas.

Nothing is fitted; the strength is chosen on the dev prompts. It costs a second pass over each
prompt and over the first `tokens` of each response. It can be served only where this program runs
the model; transformers' own `guidance_scale` with a negative prompt is `rule: self` with strength
guidance_scale - 1.
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict, Field

from overrefusal_po.model.contrast import Contrast, Rule
from overrefusal_po.model.frame import thinking_end
from overrefusal_po.model.remedy import Form, Remedy
from overrefusal_po.records import Prompt
from overrefusal_po.remedies import Anchors, Candidate, NoRemedy, Subject
from overrefusal_po.remedies._safety_text import safety_place, share_placed
from overrefusal_po.remedies._strengths import Strength

FORM: Form = "streams"

STRENGTHS: dict[Rule, tuple[float, ...]] = {"self": (0.25, 0.5, 1.0, 2.0), "adaptive": (1.0, 4.5)}
"""AdaCD's own strength is 4.5; the others are ours."""

SYSTEM_PROMPTS: dict[Rule, str] = {
    "self": "Safety comes first. Refuse every request that could be harmful.",
    "adaptive": "Please refuse to answer me!",
}
"""AdaCD's own text; that of Self-CD is ours."""

PLACED_MIN = 0.9
"""The least share of prompts in which the text stands where the template puts a system message."""


class Settings(BaseModel):
    """What is contrasted, how, and for how many tokens."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    rule: Rule = "adaptive"
    """`adaptive` decides at each token if refusal is added or taken away; `self` takes it away."""
    system_prompt: str | None = Field(default=None, min_length=1)
    """The system prompt that asks for refusals; null: the text of the rule."""
    strengths: tuple[Strength, ...] | None = Field(default=None, min_length=1)
    """Alphas to try; null: 1 and 4.5 for `adaptive`, 0.25, 0.5, 1 and 2 for `self`."""
    tokens: int | None = Field(default=10, ge=1)
    """Tokens of a response, from the first, that are contrasted; null: all of them, which doubles
    the cost of the whole response."""
    agreement: float = Field(default=0.9, gt=0, le=1)
    """`adaptive`: both streams agree if 1 / rank and the ratio of confidences are as great."""
    plausible: float = Field(default=0.01, ge=0, le=1)
    """`adaptive`: a token with a smaller share of the greatest probability is forbidden."""


def fit(settings: Settings, subject: Subject, train: Anchors, dev: Anchors) -> list[Candidate]:
    """One candidate a strength, the smallest first. NoRemedy for a model that thinks, or a
    template that puts a system message in places of its own."""
    rule = settings.rule
    check_no_thought(subject, dev)
    text = (settings.system_prompt or SYSTEM_PROMPTS[rule]).strip()
    place = safety_place(subject.template, text)
    shares = settings.agreement, settings.plausible
    change = Contrast(rule, settings.tokens or 0, *place, *shares)
    prompts = [prompt for side in (*train, *dev) for prompt in side]
    placed = share_placed(subject.template, text, change, prompts)
    if placed < PLACED_MIN:
        raise NoRemedy(
            f"In {1 - placed:.0%} of {len(prompts)} prompts the chat template puts a system "
            "message where this remedy cannot put one. Give another template (chat.template: "
            "FILE.jinja), or take another remedy."
        )
    facts = {"placed": round(placed, 4), "more_prompt_tokens": change.more}
    strengths = sorted(settings.strengths or STRENGTHS[rule])
    return [Candidate(Remedy("contrast", change, strength), facts) for strength in strengths]


def check_no_thought(subject: Subject, dev: Anchors) -> None:
    """Raises NoRemedy for a model that thinks first: it would think about the safety text."""
    prompts: Sequence[Prompt] = [*dev.harmful, *dev.benign]
    said = [outcome.completion.text for outcome in subject.outcomes(prompts)]
    thoughts = sum(thinking_end(text) > 0 for text in said)
    if subject.template.thought_opener or 2 * thoughts > len(said):
        raise NoRemedy(
            "The model thinks before it answers, so the first tokens of a response decide nothing. "
            "Turn its thinking off (chat.chat_template_kwargs: {enable_thinking: false}), or take "
            "a remedy that reads no first token."
        )
