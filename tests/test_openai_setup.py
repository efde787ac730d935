"""openai_setup.py: what the engine `openai` and the judge `llm` share, in the words of each."""

import asyncio
import subprocess
import sys

import pytest
from pydantic import SecretStr

from overrefusal_po.engines._openai_faults import shown
from overrefusal_po.engines._openai_settings import Settings as EngineSettings
from overrefusal_po.engines._openai_setup import (
    NO_KEY,
    ServerSettings,
    is_address,
    read_api_key,
)
from overrefusal_po.engines._own_loop import own_loop
from overrefusal_po.engines._replies import SHOWN
from overrefusal_po.judges._llm_settings import Settings as JudgeSettings
from overrefusal_po.plugins import find_plug

KEY = "sk-test-0123456789abcdef"
BOTH = [("engine", EngineSettings), ("judge", JudgeSettings)]


@pytest.mark.parametrize(("section", "kind"), BOTH)
def test_a_wrong_key_is_reported_in_the_words_of_the_section(
    section: str, kind: type[ServerSettings], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEY", f"{KEY} {KEY}")
    with pytest.raises(ValueError, match="MY_KEY holds blanks") as error:
        read_api_key(kind(model="m", api_key_env="MY_KEY"))
    assert KEY not in str(error.value)
    monkeypatch.delenv("MY_KEY")
    with pytest.raises(
        ValueError,
        match=f"{section}.api_key_env names the environment variable MY_KEY, which is not set",
    ):
        read_api_key(kind(model="m", api_key_env="MY_KEY"))
    with pytest.raises(ValueError, match=f"or give {section}.base_url of a server without keys"):
        read_api_key(kind(model="m", api_key_env=None))
    assert (
        read_api_key(
            kind.model_validate({"model": "m", "api_key_env": None, "base_url": "http://h/v1"})
        )
        is NO_KEY
    )


@pytest.mark.parametrize(("room", "name"), [("engines", "openai"), ("judges", "llm")])
@pytest.mark.parametrize(
    "wrong",
    [
        {"api_key_env": KEY},
        {"api_key": KEY},
        {"base_url": f"http://user:{KEY}@host/v1"},
        {"base_url": [f"http://host/v1?key={KEY}"]},
    ],
)
def test_a_key_in_a_wrong_place_is_not_repeated(
    room: str, name: str, wrong: dict[str, object]
) -> None:
    with pytest.raises(ValueError, match=r"api_key_env") as error:
        find_plug(room, {"name": name, "model": "m", **wrong})
    assert KEY not in str(error.value)


@pytest.mark.parametrize(("room", "name"), [("engines", "openai"), ("judges", "llm")])
def test_an_address_that_is_no_text_is_an_error_that_says_so(room: str, name: str) -> None:
    with pytest.raises(ValueError, match="base_url: Input should be a valid"):
        find_plug(room, {"name": name, "model": "m", "base_url": 5})


@pytest.mark.parametrize(
    ("url", "good"),
    [("http://h:1/v1", True), ("https://h", True), ("h/v1", False), ("http://", False)],
)
def test_an_address_has_a_scheme_and_a_host(url: str, good: bool) -> None:
    assert is_address(url) == good


def test_a_servers_message_is_one_short_line_without_the_key() -> None:
    error = RuntimeError(f"no\n  way, {KEY} " + "x" * SHOWN)
    assert shown("it failed", error, SecretStr(KEY)).startswith("it failed (no way, [key] xxx")
    assert len(shown("", error, SecretStr(KEY))) == SHOWN + 3
    assert "none" in shown("it failed", RuntimeError("none of these"), NO_KEY)


def test_of_fastapis_faults_the_place_and_the_message_are_shown_and_never_what_was_sent() -> None:
    def said(detail: object) -> str:
        error = RuntimeError("422")
        error.body = {"detail": detail}  # type: ignore[attr-defined]
        return shown("it failed", error, NO_KEY)

    sent = [{"role": "user", "content": "a secret question"}]
    fault = {
        "type": "missing",
        "loc": ["body", "model"],
        "msg": "Field required",
        "input": {"messages": sent},
    }
    assert (
        said([fault, "a secret question", {"loc": 1}])
        == "it failed (422 body.model: Field required)"
    )
    assert said("Model is loading") == "it failed (422 Model is loading)"
    assert said({"input": sent}) == said(None) == "it failed (422)"


def test_a_loop_of_ones_own_runs_beside_another() -> None:
    async def three() -> int:
        return 3

    async def within() -> int:
        with own_loop() as run:
            found: int = run(three())
        return found

    with own_loop() as run:
        assert run(three()) == 3
    assert asyncio.run(within()) == 3


def test_settings_are_read_without_importing_openai() -> None:
    modules = "overrefusal_po.engines.openai, overrefusal_po.judges.llm"
    code = f"import sys, {modules}\nprint('openai' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
