"""engines/_silence.py: servers that are away, for the engine `openai` and the judge `llm`. A server
is killed and started again at the same address."""

import logging
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from openai_server import Answer, Request, fails, says, serving

from overrefusal_po.engines._openai_session import ServersGone
from overrefusal_po.engines._silence import Silence
from overrefusal_po.engines.openai import OpenAIEngine, Settings
from overrefusal_po.plugins import make_judge
from overrefusal_po.records import Completion, Prompt, Sampling
from overrefusal_po.run.keys import run_key

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
from soak import Student

QUICK: dict[str, Any] = {"api_key_env": None, "backoff_seconds": 0.01, "concurrency": 2}
PROMPTS = [Prompt.of(f"How do I kill process {n}?", kind="benign") for n in range(60)]


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)


def engine(url: str, **settings: Any) -> OpenAIEngine:
    return OpenAIEngine(Settings(base_url=(url,), **{**QUICK, **settings}), name="m")


@pytest.fixture
def student() -> Iterator[Student]:
    """A server in a process of its own, which can be killed and started at the same address."""
    made = Student()
    yield made
    made.stop()


def drawn(made: OpenAIEngine, student: Student, away_seconds: float) -> list[Completion]:
    """All completions; the server is killed after the fifth, and comes back after a while."""
    found: list[Completion] = []
    timer = threading.Timer(away_seconds, student.start)
    for completion in made.complete(PROMPTS, Sampling()):
        found.append(completion)
        if len(found) == 5:
            student.stop()
            timer.start()
    timer.join()
    return found


def test_a_server_that_comes_back_within_the_wait_costs_no_prompt(
    student: Student, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    found = drawn(engine(student.url, wait_seconds=60, max_retries=1), student, 1.5)
    assert all(c.error is None and c.text for c in found)
    assert len(found) == 60 and len({c.prompt_id for c in found}) == 60
    said = [r.getMessage() for r in caplog.records if "server is there" in r.getMessage()]
    assert said[0] == "no server is there; waiting for up to 60 s"
    assert len(said) == 2 and said[1].startswith("a server is there again, after")


def test_a_server_that_does_not_come_back_ends_the_run_after_the_wait(student: Student) -> None:
    found: list[Completion] = []
    begun = time.monotonic()
    made = engine(student.url, wait_seconds=1.0, max_retries=0)
    with pytest.raises(
        ServersGone, match="when the server answers again, the same command goes on"
    ):
        for completion in made.complete(PROMPTS, Sampling()):
            found.append(completion)
            if len(found) == 5:
                student.stop()
    assert all(c.error is None for c in found) and 5 <= len(found) < 60
    assert time.monotonic() - begun >= 1.0


def test_a_server_that_starts_late_is_waited_for_too(student: Student) -> None:
    student.stop()
    timer = threading.Timer(1.0, student.start)
    timer.start()
    made = engine(student.url, wait_seconds=60, max_retries=0)
    found = list(made.complete(PROMPTS[:3], Sampling()))
    timer.join()
    assert len(found) == 3 and all(c.error is None for c in found)


def test_a_prompt_that_a_server_cannot_answer_is_not_waited_for() -> None:
    """The server is there and fails at one prompt: no time passes, and the others are answered."""

    def script(request: Request) -> Answer:
        return fails(500, "it breaks") if "process 7?" in request.text else says("fine")

    begun = time.monotonic()
    with serving(script) as server:
        made = engine(server.url, wait_seconds=3600, max_retries=1)
        found = list(made.complete(PROMPTS, Sampling()))
    assert sum(c.error is not None for c in found) == 1 and len(found) == 60
    assert time.monotonic() - begun < 60


def test_a_judge_waits_for_its_server_too(student: Student) -> None:
    def item(number: int) -> tuple[Prompt, Completion]:
        prompt = PROMPTS[number]
        text = f"Answer {number}."
        made = {"id": f"c{number}", "prompt_id": prompt.id, "text": text, "model": "m"}
        return prompt, Completion.model_validate(
            {**made, "engine": "openai", "sampling": {}, "finish_reason": "stop"}
        )

    student.stop()
    timer = threading.Timer(1.0, student.start)
    settings = {"name": "llm", "model": "judge", "base_url": student.url, "api_key_env": None}
    judge = make_judge({**settings, "concurrency": 1, "max_retries": 0, "wait_seconds": 60})
    timer.start()
    prompts, completions = zip(*(item(n) for n in range(4)), strict=True)
    verdicts = judge.score(list(prompts), list(completions))
    timer.join()
    assert [v.unscored for v in verdicts] == [None] * 4


def test_how_long_to_wait_makes_no_other_run() -> None:
    def key(**more: object) -> str:
        return run_key({"task": "curate", "engine": {"name": "openai", **more}}, {})

    assert key() == key(wait_seconds=3600) != key(model="other")


def test_a_reply_ends_a_silence_and_other_faults_begin_none() -> None:
    silence = Silence(3600)
    silence.note("timeout")
    assert not silence.may_end("timeout") and silence.since is None
    silence.note("unreachable")
    assert silence.may_end("unreachable") and not silence.may_end("500")
    silence.note(None)
    assert not silence.may_end("unreachable")
    assert not Silence(0).may_end("unreachable")
