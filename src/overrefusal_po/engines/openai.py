"""Any OpenAI-compatible server: prompts -> completions over HTTP, so many at a time, balanced over
several servers.

    engine: {name: openai, base_url: "http://localhost:8000/v1", api_key_env: null}
    # vllm serve, SGLang, ...
    engine: {name: openai, base_url: ["http://a:8000/v1", "http://b:8000/v1"], api_key_env: null}
    # a fleet of one model

A sample is a request of its own with a seed from (seed, prompt id, sample number), because some
servers ignore `n`; what a server makes of a seed is the server's own. Prompts are read as they are
needed, so there may be more of them than memory holds. A request that gives nothing is sent again,
to another server where there is one; what still has no response then ends as a completion with
`error`. Each completion's requests and tokens go to a ledger.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from typing import Any

from overrefusal_po.engines._costs import Cost
from overrefusal_po.engines._openai_session import BudgetSpent, Session
from overrefusal_po.engines._openai_settings import Settings as Settings
from overrefusal_po.engines._openai_setup import key_of
from overrefusal_po.model.chat import ChatTemplate
from overrefusal_po.records import Completion, Prompt, Sampling, content_id


class OpenAIEngine:
    """Sends prompts to servers of one model.

    Args:
        settings: the recipe's keys.
        name: the model's name at the servers, and in completions.
        system_prompt: put before conversations without one; None leaves it to the server's
            template.
        template_kwargs: sent as `chat_template_kwargs` where there are any.
        neutral: breaks up control tokens in text; None (no tokenizer at hand) sends text as it is.

    Raises:
        ValueError: no openai package, or no key.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        name: str,
        system_prompt: str | None = None,
        template_kwargs: Mapping[str, Any] | None = None,
        neutral: Callable[[str], str] | None = None,
    ) -> None:
        self.settings = settings
        self.name = name
        self.system_prompt = system_prompt
        self.template_kwargs = dict(template_kwargs or {})
        self.neutral = neutral or str
        key_of(settings)  # before a stage does any work

    def complete(
        self,
        prompts: Iterable[Prompt],
        sampling: Sampling,
        *,
        samples: int = 1,
        had: Container[tuple[str, int]] = frozenset(),
        spent_tokens: int = 0,
        spend: Callable[[Cost], None] | None = None,
    ) -> Iterator[Completion]:
        """A completion for each prompt and sample number that is not in `had`, as they come.

        `spend` gets each completion's cost just before the completion; `spent_tokens` of the budget
        are spent already. Raises ValueError (wrong set-up), ServersGone and BudgetSpent, all after
        what had come was given.
        """
        work = ((p, n) for p in prompts for n in range(samples) if (p.id, n) not in had)
        session = Session(
            self.settings, self.name, self.body, work, sampling, spent_tokens=spent_tokens
        )
        spend = spend or (lambda cost: None)
        try:
            for drawn in session.drawn_in_turn():
                spend(drawn.cost)
                yield drawn.completion
        finally:
            for drawn in session.vain:  # paid for, though they stand nowhere
                spend(drawn.cost)
        if session.left_over:
            raise BudgetSpent(
                f"engine.token_budget: {session.tokens} of {self.settings.token_budget} tokens are "
                "spent. Raise it, and the "
                "same command goes on where it stopped."
            )

    def body(self, prompt: Prompt, sampling: Sampling, sample: int) -> dict[str, Any]:
        """The fields of a prompt's request. ValueError for an assistant prefix that the servers
        cannot take."""
        limit = "max_completion_tokens" if self.settings.base_url is None else "max_tokens"
        options = {
            limit: sampling.max_new_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
        }
        if self.settings.seeded:
            options["seed"] = seed_of(sampling.seed, prompt.id, sample)
        extra: dict[str, Any] = dict(self.settings.extra_body)
        if prompt.raw_text is not None:
            text = self.neutral(prompt.raw_text) + prompt.assistant_prefix
            # a plain completion of OpenAI's knows the old name only
            options["max_tokens"] = options.pop(limit)
            return {"model": self.name, "prompt": text, **options, "extra_body": extra}
        messages = self.messages(prompt)
        if self.template_kwargs:
            extra["chat_template_kwargs"] = self.template_kwargs
        if prompt.assistant_prefix:
            self.check_prefix(prompt)
            messages.append({"role": "assistant", "content": self.neutral(prompt.assistant_prefix)})
            extra |= {"continue_final_message": True, "add_generation_prompt": False}
        return {"model": self.name, "messages": messages, **options, "extra_body": extra}

    def messages(self, prompt: Prompt) -> list[dict[str, str]]:
        """The conversation as it is sent."""
        rows: list[dict[str, str]] = [
            {"role": m.role, "content": self.neutral(m.content)} for m in prompt.messages
        ]
        if self.system_prompt is not None and rows[0]["role"] != "system":
            rows.insert(0, {"role": "system", "content": self.system_prompt})
        return rows

    def check_prefix(self, prompt: Prompt) -> None:
        """Raises ValueError where the servers are not known to go on with a begun answer."""
        if not self.settings.continue_final_message:
            raise ValueError(
                f"prompt {prompt.id} begins the assistant's answer "
                f"({prompt.assistant_prefix[:40]!r}), which only servers with "
                "`continue_final_message` go on with (vLLM, SGLang); another would answer anew and "
                "nobody would see it. Set engine.continue_final_message: true if yours has it, or "
                "use engine: transformers."
            )


def seed_of(seed: int, prompt_id: str, sample: int) -> int:
    """The seed of one request: 31 bits, because servers read it as a signed number of 32."""
    return int(content_id(seed, prompt_id, sample), 16) % 2**31


def engine(
    settings: Settings,
    section: Mapping[str, Any],
    template: ChatTemplate | None,
    *,
    name: str,
    system_prompt: str | None,
    template_kwargs: Mapping[str, Any],
    batch_size: int,
) -> OpenAIEngine:
    """The plug-file entry point. The model is `settings.model` or `name`; `section` and
    `batch_size` are the servers' own."""
    return OpenAIEngine(
        settings,
        name=settings.model or name,
        system_prompt=system_prompt,
        template_kwargs=template_kwargs,
        neutral=None if template is None else template.neutral,
    )


def check(settings: Settings) -> None:
    """Raises ValueError where the servers' key is missing. A stage asks before any other model has
    answered."""
    key_of(settings)


def note(settings: Settings) -> str:
    """What a manifest says of completions from this engine."""
    places = ", ".join(settings.base_url or ("OpenAI",))
    seeds = (
        "seeds were sent, and what a server makes of them is its own"
        if settings.seeded
        else "no seeds were sent"
    )
    return f"openai ({places}; {seeds})"
