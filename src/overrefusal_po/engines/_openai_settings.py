"""The recipe keys of the engine `openai`, checked so that no error message can repeat a key put in
the wrong place."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field, field_validator

from overrefusal_po.engines._openai_setup import Owner, ServerSettings, is_address


class Settings(ServerSettings):
    """The recipe keys of this engine. No key ever stands here: `api_key_env` names the variable
    that holds it."""

    owner: ClassVar[Owner] = Owner(
        section="engine",
        plug="openai",
        parameters=(
            *("model", "max_tokens", "max_completion_tokens", "temperature", "top_p", "seed"),
            *("chat_template_kwargs", "continue_final_message", "add_generation_prompt"),
        ),
        unsent="`seeded: false` sends no seed",
        no_quota="; the same command goes on when it has",
    )
    model: str | None = Field(None, min_length=1)
    """The model's name at the server; None: the name that the recipe gives the model."""
    base_url: tuple[str, ...] | None = None
    """Addresses up to and with /v1, one or several that serve the same model; None: OpenAI's
    own."""
    concurrency: int = Field(32, ge=1, le=4096)
    """Requests on their way at a time, to each address."""
    timeout_seconds: float = Field(600.0, gt=0)
    """For one try."""
    max_retries: int = Field(6, ge=0, le=50)
    """Tries beyond the first after 408, 409, 429, 5xx, timeouts, broken connections and replies
    that cannot be read."""
    backoff_seconds: float = Field(0.5, gt=0)
    """Wait before the first further try, doubled for each one after it; a server's Retry-After goes
    before it."""
    token_budget: int | None = Field(None, gt=0)
    """Tokens, read and written, after which no request is sent; raise it and the same command goes
    on."""
    seeded: bool = True
    """Whether a seed is sent, for servers that refuse it."""
    continue_final_message: bool = False
    """Whether the servers know the field of this name (vLLM, SGLang): needed for prompts with an
    assistant prefix."""
    extra_body: dict[str, Any] = Field(default_factory=dict)
    """Further fields of each request, such as {top_k: 20}."""

    @field_validator("base_url")
    @classmethod
    def are_addresses(cls, urls: tuple[str, ...] | None) -> tuple[str, ...] | None:
        """Only http and https with a host, each once."""
        if urls is None:
            return None
        if not urls or not all(map(is_address, urls)):
            raise ValueError("no address such as http://localhost:8000/v1, or a list of them")
        if len(set(urls)) < len(urls):
            raise ValueError("an address is there twice; raise concurrency to send one server more")
        return urls

    @field_validator("base_url", mode="before")
    @classmethod
    def one_is_a_list_too(cls, urls: Any) -> Any:
        """A list of one for an address that stands alone."""
        return [urls] if isinstance(urls, str) else urls

    @field_validator("extra_body")
    @classmethod
    def are_not_ours(cls, fields: dict[str, Any]) -> dict[str, Any]:
        """Fields that the recipe says elsewhere may not be said again."""
        ours = {"model", "messages", "prompt", "n", "stream", "seed", "temperature", "top_p"}
        ours |= {"max_tokens", "max_completion_tokens", "chat_template_kwargs"}
        if both := sorted(ours & fields.keys()):
            raise ValueError(
                f"{both[0]} is set by the recipe's own keys (generation, chat, seed, engine)"
            )
        return fields
