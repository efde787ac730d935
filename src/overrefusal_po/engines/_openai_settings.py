"""The recipe keys of the engine `openai`, and those of every fleet of servers. No error message
repeats an API key that is in the wrong place."""

from __future__ import annotations

from typing import Any, ClassVar, Self

from pydantic import Field, field_validator, model_validator

from overrefusal_po.engines._openai_setup import Owner, ServerSettings, is_address

RECIPE_FIELDS = frozenset(
    ("model", "messages", "prompt", "n", "stream", "seed", "temperature", "top_p")
) | {"max_tokens", "max_completion_tokens", "chat_template_kwargs"}
"""Request fields that the recipe's own keys set."""


class FleetSettings(ServerSettings):
    """Servers of one model, and how they are asked (`Session`)."""

    base_url: tuple[str, ...] | None = None
    """Addresses with /v1 at their end, one or several that serve the same model; None: OpenAI's
    own."""
    concurrency: int = Field(32, ge=1, le=4096)
    """Requests that run at the same time, at each address."""
    timeout_seconds: float = Field(600.0, gt=0)
    """For one try, from the connection to the reply's last byte."""
    max_retries: int = Field(6, ge=0, le=50)
    """Tries beyond the first, after 408, 409, 429, 5xx, timeouts, broken connections and replies
    that cannot be read."""
    backoff_seconds: float = Field(0.5, gt=0)
    """The wait before the second try. It doubles at each further try. A server's Retry-After
    replaces it."""

    @field_validator("base_url")
    @classmethod
    def are_addresses(cls, urls: tuple[str, ...] | None) -> tuple[str, ...] | None:
        """Accepts http and https addresses with a host, each once."""
        if urls is None:
            return None
        if not urls or not all(map(is_address, urls)):
            raise ValueError("no address such as http://localhost:8000/v1, or a list of them")
        if len(set(urls)) < len(urls):
            raise ValueError("an address is there twice; raise concurrency to send one server more")
        return urls

    @field_validator("base_url", mode="before")
    @classmethod
    def one_becomes_a_list(cls, urls: object) -> object:
        """A list of one for a single address."""
        return [urls] if isinstance(urls, str) else urls


class Settings(FleetSettings):
    """The recipe keys of this engine. It never holds a key: `api_key_env` names the variable that
    does."""

    owner: ClassVar[Owner] = Owner(
        section="engine",
        plug="openai",
        fixes={
            "model": "Correct engine.model",
            "max_tokens": "Set engine.max_tokens_name: max_completion_tokens, or change "
            "generation.max_new_tokens",
            "max_completion_tokens": "Set engine.max_tokens_name: max_tokens, or change "
            "generation.max_new_tokens",
            "temperature": "Change generation.temperature",
            "top_p": "Change generation.top_p; 1 is not sent",
            "seed": "Set engine.seeded: false; `seeded: false` sends no seed",
            "chat_template_kwargs": "Remove chat.chat_template_kwargs",
            "continue_final_message": "Set engine.continue_final_message: false",
            "add_generation_prompt": "Set engine.continue_final_message: false",
        },
        no_quota="; the same command goes on when it has",
    )
    model: str | None = Field(None, min_length=1)
    """The model's name at the server; None: the name that the recipe gives the model."""
    adapter: str | None = Field(None, min_length=1)
    """The folder of a LoRA adapter of that model, such as runs/dpo-1a2b3c4d/adapter or
    @dpo.adapter. Each server loads it before the first prompt and unloads it at the end. vLLM needs
    --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True for that, SGLang --enable-lora."""
    adapter_on_server: str | None = Field(None, min_length=1)
    """The path under which the servers see that folder; null: the same as here."""
    token_budget: int | None = Field(None, gt=0)
    """After this many tokens, read and written, no request is sent. Raise it, and the same command
    goes on."""
    seeded: bool = True
    """Whether to send a seed; some servers refuse it."""
    continue_final_message: bool = False
    """Whether the servers know the field `continue_final_message` (vLLM, SGLang). Prompts with an
    assistant prefix need it."""
    # Any: servers take any JSON value
    extra_body: dict[str, Any] = Field(default_factory=dict)
    """Further fields of each request, such as {top_k: 20}."""

    @model_validator(mode="after")
    def adapter_has_servers(self) -> Self:
        """Refuses an adapter without a server that could load it, and a path without adapter."""
        if self.adapter and self.base_url is None:
            raise ValueError(
                "adapter needs servers of your own that load it (vLLM, SGLang), and base_url is "
                "not given. Give their addresses"
            )
        if self.adapter_on_server and not self.adapter:
            raise ValueError(
                "adapter_on_server says where the servers see the folder of adapter, which is not "
                "given. Give adapter too"
            )
        return self

    @field_validator("extra_body")
    @classmethod
    def are_not_ours(cls, fields: dict[str, Any]) -> dict[str, Any]:
        """Refuses fields that other keys of the recipe set."""
        if both := sorted(RECIPE_FIELDS & fields.keys()):
            raise ValueError(
                f"{both[0]} is set by the recipe's own keys (generation, chat, seed, engine)"
            )
        return fields
