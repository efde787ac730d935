"""The recipe keys of the judge `llm`. No error message can repeat a server key that was put in the
wrong place."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field, field_validator

from overrefusal_po.engines._openai_setup import Owner, ServerSettings, is_address


class Settings(ServerSettings):
    """The recipe keys of this judge. No key ever stands here: `api_key_env` names the variable that
    holds it."""

    owner: ClassVar[Owner] = Owner(
        section="judge",
        plug="llm",
        fixes={
            "model": "Correct judge.model",
            "max_tokens": "Set judge.max_tokens_name: max_completion_tokens, or change "
            "judge.max_tokens",
            "max_completion_tokens": "Set judge.max_tokens_name: max_tokens, or change "
            "judge.max_tokens",
            "temperature": "Set `temperature: null`, which sends none",
            "seed": "Set `seed: null`, which sends none",
        },
    )
    model: str = Field(min_length=1)
    """The model's name at the server."""
    base_url: str | None = None
    """The server's address up to and with /v1; None: OpenAI's own."""
    prompt: str = Field("refusal", min_length=1)
    """refusal, strongreject or derta (the newest version; `refusal.v1` is that one), or the path of
    a .txt file."""
    max_tokens: int = Field(512, gt=0)
    """Tokens that the judge may write, its reasoning included; a reply that is cut off is
    unscored."""
    temperature: float | None = Field(0.0, ge=0, le=2)
    """None: not sent, for models that take none."""
    seed: int | None = 0
    """Sent to the server, and part of the marks around the texts; None: not sent."""
    concurrency: int = Field(8, ge=1, le=1000)
    """Requests on their way at a time."""
    timeout_seconds: float = Field(60.0, gt=0)
    """For one try, from the connection to the reply's last byte."""
    max_retries: int = Field(4, ge=0, le=20)
    """Tries beyond the first after 408, 409, 429 and 5xx (with the wait that the server asks for)
    and broken connections."""
    max_characters: int = Field(40_000, gt=0)
    """Prompt and response together; what is longer is unscored, because a judge that reads half of
    it may miss the rest."""

    @field_validator("base_url")
    @classmethod
    def is_address(cls, url: str | None) -> str | None:
        """Only http and https with a host."""
        if url is not None and not is_address(url):
            raise ValueError("not an address such as http://localhost:8000/v1")
        return url
