"""The recipe keys of the judge `llm`, checked so that no error message can repeat a key put in the wrong place."""

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
    """The recipe keys of this judge. No key ever stands here: `api_key_env` names the variable that holds it."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    model: str = Field(min_length=1)
    """The model's name at the server."""
    base_url: str | None = None
    """The server's address up to and with /v1; None: OpenAI's own."""
    api_key_env: str | None = "OPENAI_API_KEY"
    """The environment variable that holds the key; None: a server without keys."""
    prompt: str = Field("refusal", min_length=1)
    """refusal, strongreject or derta (the newest version; `refusal.v1` is that one), or the path of a .txt file."""
    max_tokens: int = Field(512, gt=0)
    """Tokens that the judge may write, its reasoning included; a reply that is cut off is unscored."""
    temperature: float | None = Field(0.0, ge=0, le=2)
    """None: not sent, for models that take none."""
    seed: int | None = 0
    """Sent to the server, and part of the marks around the texts; None: not sent."""
    concurrency: int = Field(8, ge=1, le=1000)
    """Requests on their way at a time."""
    timeout_seconds: float = Field(60.0, gt=0)
    """For one try."""
    max_retries: int = Field(4, ge=0, le=20)
    """Tries beyond the first after 408, 409, 429 and 5xx (with the wait that the server asks for) and broken connections."""
    max_characters: int = Field(40_000, gt=0)
    """Prompt and response together; what is longer is unscored, because a judge that reads half of it may miss the rest."""

    @model_validator(mode="before")
    @classmethod
    def keys_stay_out(cls, values: Any) -> Any:
        """Unknown settings, and places where a key could stand by mistake, are errors that do not repeat the value."""
        if not isinstance(values, dict):
            return values
        unknown = sorted(map(str, values.keys() - cls.model_fields.keys()))
        if unknown:
            hint = unknown_key(unknown[0], cls.model_fields, "", owner="the judge llm")
            raise masked(unknown[0], f"{hint} A key never stands in a recipe: name its variable in api_key_env.")
        variable, url = values.get("api_key_env"), values.get("base_url")
        if isinstance(variable, str) and not VARIABLE.fullmatch(variable):
            raise masked(
                "api_key_env", "no environment variable's name, such as OPENAI_API_KEY (capitals, an underscore)"
            )
        if isinstance(url, str) and set("@?#") & set(url):
            raise masked("base_url", "an address may hold no user, password or query; a key comes from api_key_env")
        return values

    @field_validator("base_url")
    @classmethod
    def is_address(cls, url: str | None) -> str | None:
        """Only http and https with a host."""
        if url is not None and (urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname):
            raise ValueError("not an address such as http://localhost:8000/v1")
        return url
