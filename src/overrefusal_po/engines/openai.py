"""Any OpenAI-compatible server: prompts -> completions over HTTP, many at a time, balanced over
several servers.

    engine: {name: openai, base_url: "http://localhost:8000/v1", api_key_env: null}
    # vllm serve MODEL --generation-config vllm, SGLang, ...
    engine: {name: openai, base_url: ["http://a:8000/v1", "http://b:8000/v1"], api_key_env: null}
    # several servers of one model
    engine: {name: openai, base_url: "http://localhost:8000/v1", adapter: runs/dpo-1a2b3c4d/adapter}
    # a LoRA adapter, which the servers of its base load while they run

Each sample is a request of its own, because some servers ignore `n`. Its seed follows from (seed,
prompt id, sample number); each server uses a seed in its own way. Prompts are read as they are
needed, so there may be more of them than memory holds. A failed request is sent again, to another
server if there is one. If all tries fail, the completion has an `error`. The requests and tokens of
each completion go to a ledger.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from overrefusal_po.engines import SampleKey
from overrefusal_po.engines._adapter_check import asked_servers
from overrefusal_po.engines._adapter_folder import ServedAdapter, adapter_hash, served_adapter
from overrefusal_po.engines._adapter_server import AdapterAt
from overrefusal_po.engines._costs import Cost
from overrefusal_po.engines._openai_session import BudgetSpent, Session
from overrefusal_po.engines._openai_settings import Settings as Settings
from overrefusal_po.engines._openai_setup import read_api_key
from overrefusal_po.model.chat import ChatTemplate
from overrefusal_po.records import Completion, Prompt, Sampling, content_id

if TYPE_CHECKING:
    from openai import AsyncOpenAI

logger = logging.getLogger(__name__)


class OpenAIEngine:
    """Sends prompts to servers of one model.

    Args:
        settings: the recipe's keys.
        name: the model's name at the servers, and in completions. With an adapter, completions
            have the adapter's name behind it.
        system_prompt: put before conversations without one; None leaves it to the server's
            template.
        template_kwargs: sent as `chat_template_kwargs` if there are any.
        neutral: breaks up control tokens in text; None (no tokenizer) sends text unchanged.

    Raises:
        ValueError: no openai package, no key, or a folder that holds no adapter.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        name: str,
        system_prompt: str | None = None,
        template_kwargs: Mapping[str, object] | None = None,
        neutral: Callable[[str], str] | None = None,
    ) -> None:
        self.settings = settings
        self.adapter = None if settings.adapter is None else served_adapter(settings.adapter)
        self.base = name
        self.name = name if self.adapter is None else f"{name}+{self.adapter.name}"
        self.compared: set[str] = set()
        """Addresses whose model was compared with the adapter's base."""
        self.system_prompt = system_prompt
        self.template_kwargs = dict(template_kwargs or {})
        self.neutral = neutral or str
        read_api_key(settings)  # a missing key is found before a stage does any work

    def complete(
        self,
        prompts: Iterable[Prompt],
        sampling: Sampling,
        *,
        samples: int = 1,
        had: Container[SampleKey] = frozenset(),
        spent_tokens: int = 0,
        spend: Callable[[Cost], None] | None = None,
    ) -> Iterator[Completion]:
        """A completion for each prompt and sample number that is not in `had`, as they come.

        `spend` gets the cost of each completion just before the completion. `spent_tokens` of the
        budget are spent already. Raises ValueError (wrong set-up), ServersGone and BudgetSpent, all
        after everything that came was given.
        """
        session = Session(
            self.settings,
            self.name,
            self.body,
            work=((p, n) for p in prompts for n in range(samples) if (p.id, n) not in had),
            sampling=sampling,
            token_budget=self.settings.token_budget,
            spent_tokens=spent_tokens,
            make_adapter=None if self.adapter is None else partial(self.adapter_at, self.adapter),
        )
        spend = spend or (lambda cost: None)
        try:
            for drawn in session.results():
                spend(drawn.cost)
                yield drawn.completion
        finally:
            for drawn in session.held_back:  # paid for, though no file will hold them
                spend(drawn.cost)
            for why, count in session.empty.items():
                logger.warning("%d responses of %s are empty: %s", count, self.name, why)
        if session.work_left:
            raise BudgetSpent(
                f"engine.token_budget: {session.tokens} of {self.settings.token_budget} tokens are "
                "spent. Raise it, and the same command goes on where it stopped."
            )

    def adapter_at(self, adapter: ServedAdapter, url: str, client: AsyncOpenAI) -> AdapterAt:
        """The adapter at one server."""
        folder = self.settings.adapter_on_server or str(adapter.folder.absolute())
        key = read_api_key(self.settings)
        return AdapterAt(adapter, url, client, folder, key=key, compared=self.compared)

    def body(self, prompt: Prompt, sampling: Sampling, sample: int) -> dict[str, object]:
        """The fields of a prompt's request. ValueError for an assistant prefix that the servers do
        not take."""
        # each server may take the limit under another name: `LimitName`
        limit = self.settings.limit_name
        options: dict[str, object] = {
            limit: sampling.max_new_tokens,
            "temperature": sampling.temperature,
        }
        if sampling.top_p != 1:  # 1 cuts nothing off, and some servers refuse the field
            options["top_p"] = sampling.top_p
        if self.settings.seeded:
            options["seed"] = request_seed(sampling.seed, prompt.id, sample)
        extra: dict[str, object] = dict(self.settings.extra_body)
        if prompt.raw_text is not None:
            text = self.neutral(prompt.raw_text) + prompt.assistant_prefix
            # OpenAI's plain completions know the old name only
            options["max_tokens"] = options.pop(limit)
            return {"model": self.base, "prompt": text, **options, "extra_body": extra}
        messages = self.messages(prompt)
        if self.template_kwargs:
            extra["chat_template_kwargs"] = self.template_kwargs
        if prompt.assistant_prefix:
            self.check_prefix(prompt)
            messages.append({"role": "assistant", "content": self.neutral(prompt.assistant_prefix)})
            extra |= {"continue_final_message": True, "add_generation_prompt": False}
        return {"model": self.base, "messages": messages, **options, "extra_body": extra}

    def messages(self, prompt: Prompt) -> list[dict[str, str]]:
        """The conversation to send."""
        rows: list[dict[str, str]] = [
            {"role": m.role, "content": self.neutral(m.content)} for m in prompt.messages
        ]
        if self.system_prompt is not None and rows[0]["role"] != "system":
            rows.insert(0, {"role": "system", "content": self.system_prompt})
        return rows

    def check_prefix(self, prompt: Prompt) -> None:
        """Raises ValueError if the servers may not continue an answer that is begun."""
        if not self.settings.continue_final_message:
            raise ValueError(
                f"prompt {prompt.label} begins the assistant's answer "
                f"({prompt.assistant_prefix[:40]!r}). Only servers with `continue_final_message` "
                "continue it (vLLM, SGLang); another would begin a new answer, and nobody would "
                "see that. Set engine.continue_final_message: true if yours has it, or use "
                "engine: transformers."
            )


def request_seed(seed: int, prompt_id: str, sample: int) -> int:
    """The seed of one request: 31 bits, because servers read it as a signed number of 32."""
    return int(content_id(seed, prompt_id, sample), 16) % 2**31


def engine(
    settings: Settings,
    section: Mapping[str, object],
    template: ChatTemplate | None,
    *,
    name: str,
    system_prompt: str | None,
    template_kwargs: Mapping[str, object],
    batch_size: int,
) -> OpenAIEngine:
    """The engine of a recipe. The model is `settings.model` or `name`; the servers decide what
    `section` and `batch_size` say."""
    return OpenAIEngine(
        settings,
        name=settings.model or name,
        system_prompt=system_prompt,
        template_kwargs=template_kwargs,
        neutral=None if template is None else template.neutral,
    )


def check(settings: Settings) -> None:
    """Raises ValueError if the servers' key is missing, or if there is no adapter where the recipe
    says. A stage asks before any other model has answered. What an earlier stage makes (`@...`) is
    not there yet."""
    read_api_key(settings)
    if settings.adapter is not None and not settings.adapter.startswith("@"):
        served_adapter(settings.adapter)


def inputs(settings: Settings) -> dict[str, str]:
    """{key: hash of its content} of what the responses depend on beside the recipe: the adapter.

    Empty for an adapter that an earlier stage will make, or that is not there.
    """
    found = None if settings.adapter is None else adapter_hash(Path(settings.adapter).expanduser())
    return {} if found is None else {"adapter": found}


def model_words(settings: Settings) -> str | None:
    """What answers beside the recipe's `model:`, in words; None if nothing does."""
    return None if settings.adapter is None else served_adapter(settings.adapter).words


def check_line(settings: Settings) -> str | None:
    """What `check` says of a key that is not there, and of the adapter and the servers that are to
    load it; None if there is nothing to say. ValueError for a folder that holds none, and for a
    server that is there and takes none."""
    if settings.adapter is None:
        return without_key(settings)
    if settings.adapter.startswith("@"):
        return f"the adapter {settings.adapter}, which an earlier stage makes"
    return asked_servers(settings, served_adapter(settings.adapter))


def without_key(settings: Settings) -> str | None:
    """Why a run on this machine would stop before its first request; None if it would not. The
    recipe may be checked on another machine than it runs on."""
    try:
        read_api_key(settings)
    except ValueError as error:
        return f"here it would not run: {error}"
    return None


def note(settings: Settings) -> str:
    """Where completions come from, for manifests and reports."""
    places = ", ".join(settings.base_url or ("OpenAI",))
    seeds = (
        "seeds were sent, and what a server makes of them is its own"
        if settings.seeded
        else "no seeds were sent"
    )
    return f"openai ({places}; {seeds})"
