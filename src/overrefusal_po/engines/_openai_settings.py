"""The recipe keys of the engine `openai`, checked so that no error message can repeat a key put in the wrong place."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_core import PydanticCustomError

from overrefusal_po.fields import unknown_key

VARIABLE = re.compile(r"[A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+")
"""Names of environment variables; narrow, so that a key that was put here by mistake is no name and is not repeated."""


def masked(field: str, problem: str) -> ValidationError:
    """An error about a setting that does not show what was given, because that may be a key."""
    fault = PydanticCustomError("setting", "{problem}", {"problem": problem})
    return ValidationError.from_exception_data("Settings", [{"type": fault, "loc": (field,), "input": "not shown"}])


class Settings(BaseModel):
    """The recipe keys of this engine. No key ever stands here: `api_key_env` names the variable that holds it."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    model: str | None = Field(None, min_length=1)
    """The model's name at the server; None: the name that the recipe gives the model."""
    base_url: tuple[str, ...] | None = None
    """Addresses up to and with /v1, one or several that serve the same model; None: OpenAI's own."""
    api_key_env: str | None = "OPENAI_API_KEY"
    """The environment variable that holds the key; None: servers without keys."""
    concurrency: int = Field(32, ge=1, le=4096)
    """Requests on their way at a time, to each address."""
    timeout_seconds: float = Field(600.0, gt=0)
    """For one try."""
    max_retries: int = Field(6, ge=0, le=50)
    """Tries beyond the first after 408, 409, 429, 5xx, timeouts, broken connections and replies that cannot be read."""
    backoff_seconds: float = Field(0.5, gt=0)
    """Wait before the first further try, doubled for each one after it; a server's Retry-After goes before it."""
    token_budget: int | None = Field(None, gt=0)
    """Tokens, read and written, after which no request is sent; raise it and the same command goes on."""
    seeded: bool = True
    """Whether a seed is sent, for servers that refuse it."""
    continue_final_message: bool = False
    """Whether the servers know the field of this name (vLLM, SGLang): needed for prompts with an assistant prefix."""
    extra_body: dict[str, Any] = {}
    """Further fields of each request, such as {top_k: 20}."""

    @model_validator(mode="before")
    @classmethod
    def keys_stay_out(cls, values: Any) -> Any:
        """Unknown settings, and places where a key could stand by mistake, are errors that do not repeat the value."""
        if not isinstance(values, dict):
            return values
        unknown = sorted(map(str, values.keys() - cls.model_fields.keys()))
        if unknown:
            hint = unknown_key(unknown[0], cls.model_fields, "", owner="the engine openai")
            raise masked(unknown[0], f"{hint} A key never stands in a recipe: name its variable in api_key_env.")
        variable = values.get("api_key_env")
        if isinstance(variable, str) and not VARIABLE.fullmatch(variable):
            raise masked(
                "api_key_env", "no environment variable's name, such as OPENAI_API_KEY (capitals, an underscore)"
            )
        urls = [values["base_url"]] if isinstance(values.get("base_url"), str) else values.get("base_url")
        if any(isinstance(url, str) and set("@?#") & set(url) for url in urls or ()):
            raise masked("base_url", "an address may hold no user, password or query; a key comes from api_key_env")
        return {**values, "base_url": urls}

    @field_validator("base_url")
    @classmethod
    def are_addresses(cls, urls: tuple[str, ...] | None) -> tuple[str, ...] | None:
        """Only http and https with a host, each once."""
        if urls is None:
            return None
        wrong = [u for u in urls if urlsplit(u).scheme not in ("http", "https") or not urlsplit(u).hostname]
        if wrong or not urls:
            raise ValueError("no address such as http://localhost:8000/v1, or a list of them")
        if len(set(urls)) < len(urls):
            raise ValueError("an address is there twice; raise concurrency to send one server more")
        return urls

    @field_validator("extra_body")
    @classmethod
    def are_not_ours(cls, fields: dict[str, Any]) -> dict[str, Any]:
        """Fields that the recipe says elsewhere may not be said again."""
        ours = {"model", "messages", "prompt", "n", "stream", "seed", "temperature", "top_p"}
        ours |= {"max_tokens", "max_completion_tokens", "chat_template_kwargs"}
        if both := sorted(ours & fields.keys()):
            raise ValueError(f"{both[0]} is set by the recipe's own keys (generation, chat, seed, engine)")
        return fields
