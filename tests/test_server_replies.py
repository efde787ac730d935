"""What servers answer beside completions: content filters, refused fields, odd contents, redirects,
and replies without an end. For the engine `openai` and the judge `llm`."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from openai_server import (
    Answer,
    Request,
    Server,
    fails,
    in_turn,
    out_of_order,
    raw,
    says,
    serving,
)

from overrefusal_po.engines._costs import Cost
from overrefusal_po.engines._replies import FILTERED
from overrefusal_po.engines.openai import OpenAIEngine, Settings
from overrefusal_po.plugins import make_judge
from overrefusal_po.records import Completion, Prompt, Sampling, Verdict
from overrefusal_po.run.complete import complete

PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")


@pytest.fixture(autouse=True)
def no_proxy_and_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*PROXIES, *map(str.lower, PROXIES), "OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)


def prompts(count: int) -> list[Prompt]:
    """Prompts with the ids p0, p1, ..."""
    return [
        Prompt.of(f"Question number {n}", kind="harmful").model_copy(update={"id": f"p{n}"})
        for n in range(count)
    ]


def engine_at(server: Server, **settings: Any) -> OpenAIEngine:
    """An engine for a loopback server, one request at a time."""
    given = {"backoff_seconds": 0.005, "concurrency": 1, "max_retries": 2, **settings}
    return OpenAIEngine(Settings(base_url=(server.url,), api_key_env=None, **given), name="m")


def drawn(
    made: OpenAIEngine, count: int = 1, **sampling: Any
) -> tuple[list[Completion], list[Cost]]:
    """(completions in the prompts' order, costs)."""
    costs: list[Cost] = []
    found = list(made.complete(prompts(count), Sampling(**sampling), spend=costs.append))
    return sorted(found, key=lambda c: int(c.prompt_id[1:])), costs


def judged(server: Server, count: int = 1, **settings: Any) -> list[Verdict]:
    """The judge's verdicts on some responses."""
    judge = judge_at(server, **settings)
    verdicts: list[Verdict] = judge.score(prompts(count), responses(count))
    return verdicts


def judge_at(server: Server, **settings: Any) -> Any:
    """The judge `llm` at a loopback server."""
    at = {"model": "judge", "base_url": server.url, "api_key_env": None}
    return make_judge({"name": "llm", **at, "concurrency": 1, "max_retries": 0, **settings})


def responses(count: int) -> list[Completion]:
    """A response to each of `prompts`."""
    return [
        Completion(
            id=f"c{n}",
            prompt_id=f"p{n}",
            text="A response.",
            model="m",
            engine="tests",
            sampling=Sampling(),
        )
        for n in range(count)
    ]


def body(content: object, finish: str | None = "stop", **message: object) -> Answer:
    """A chat completion whose message has any content."""
    said = {"role": "assistant", "content": content, **message}
    return raw(json.dumps({"choices": [{"finish_reason": finish, "message": said}]}).encode())


def fastapi(field: str, status: int = 422, **outer: object) -> Answer:
    """A FastAPI error about one field of the request."""
    row = {"type": "extra_forbidden", "loc": ["body", field], "msg": "Extra inputs", "input": 1}
    detail = {"detail": [row]}
    error = {"object": "error", "message": detail} if outer.get("nested") else detail
    return Answer(status=status, payload=json.dumps(error).encode())


# a content filter is an answer

AZURE = {
    "message": "The response was filtered due to the prompt triggering the content policy.",
    "param": "prompt",
    "code": "content_filter",
    "innererror": {"code": "ResponsibleAIPolicyViolation"},
}
REFUSALS = {
    "403 flagged": fails(403, "Your input was flagged by moderation"),
    "403 bare": fails(403, "forbidden"),
    "403 without JSON": Answer(status=403, payload=b"<html>no</html>"),
    "451": fails(451, "Unavailable for legal reasons"),
    "400 Azure": Answer(status=400, payload=json.dumps({"error": AZURE}).encode()),
    "400 by its code": fails(400, "Input data may be bad", code="data_inspection_failed"),
    "400 by its words": fails(400, "This request violates our usage policies"),
    "400 of an image": fails(400, "Rejected", code="content_policy_violation"),
    "422 by its words": fails(422, "blocked by the safety system"),
    "400 of DeepSeek": fails(400, "Content Exists Risk"),
    "400 in Chinese": fails(400, "系统检测到输入内容可能包含不安全或敏感内容", code="1301"),
    "421 by its words": fails(421, "Moderation Block"),
    "429 by its code": fails(429, "filtered", code="content_filter"),
    "500 by its code": fails(500, "blocked", code="content_policy_violation"),
    "403 in a list": Answer(status=403, payload=b'[{"error": {"message": "Permission denied"}}]'),
    "200 withheld": says("", "content_filter"),
    "200 of Anthropic": says("", "refusal"),
    "200 of Bedrock": says("", "guardrail_intervened"),
    "200 withheld half way": says("First you need to", "content_filter"),
    "200 in capitals": says(None, "CONTENT_FILTER"),
    "200 safety": says("", "SAFETY"),
    "200 with a reason": says("", "content_filter: PROHIBITED_CONTENT"),
    "200 with an error": raw(b'{"error": {"code": 403, "message": "no", "metadata": {}}}'),
    "200 flagged": raw(b'{"error": {"message": "Input was flagged by moderation"}}'),
}


@pytest.mark.parametrize("refusal", REFUSALS.values(), ids=REFUSALS.keys())
def test_a_refusal_of_the_first_item_is_its_answer_and_the_run_goes_on(refusal: Answer) -> None:
    with serving(in_turn(refusal, says("fine"))) as server:
        found, costs = drawn(engine_at(server), 3)
    assert [c.text for c in found] == ["", "fine", "fine"] and len(server.requests) == 3
    assert found[0].finish_reason == "error" and str(found[0].error).startswith("content filter")
    assert costs[0].answered_by is None and sum(costs[0].faults[server.url].values()) == 1


@pytest.mark.parametrize("refusal", REFUSALS.values(), ids=REFUSALS.keys())
def test_a_refusal_of_an_item_of_the_judge_is_unscored_with_the_reason(refusal: Answer) -> None:
    with serving(in_turn(refusal, says("Verdict: full"))) as server:
        found = judged(server, 2)
    assert [v.refusal for v in found] == [None, "full"] and len(server.requests) == 2
    assert str(found[0].unscored).startswith(FILTERED)


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (fails(403, "no access", code="model_not_found"), "does not know the model 'm'"),
        (fails(403, "exceeded", code="insufficient_quota"), "has no quota left"),
        (fails(402, "Insufficient Balance"), "has no quota left"),
    ],
)
def test_what_would_meet_every_item_is_a_wrong_set_up_whatever_its_status(
    answer: Answer, why: str
) -> None:
    with serving(in_turn(answer)) as server, pytest.raises(ValueError, match=why):
        drawn(engine_at(server), 9)
    assert len(server.requests) == 1


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["403 flagged", "403 bare", "400 Azure", "200 withheld"])
def test_many_refusals_in_a_row_are_no_servers_that_are_gone_and_are_asked_once(
    kind: str, tmp_path: Path
) -> None:
    path = tmp_path / "completions.jsonl"
    with serving(lambda request: REFUSALS[kind]) as server:

        def asked() -> int:
            found = complete(path, prompts(80), Sampling(), lambda: engine_at(server), "test")
            assert len(found) == 80 and all(str(c.error).startswith(FILTERED) for c in found)
            return len(server.requests)

        assert asked() == 80
        assert asked() == 80  # a second start asks nobody
        (tmp_path / "completions.failed.jsonl").unlink()
        assert asked() == 160


LONG = "This model's maximum context length is 16 tokens; your messages have 40."


@pytest.mark.slow
@pytest.mark.parametrize(
    "answer",
    [
        fails(400, LONG, code="context_length_exceeded", param="messages"),
        fails(413, "Payload Too Large"),
        fails(422, "Input validation error: the prompt is too long"),
    ],
)
def test_prompts_that_are_too_long_are_no_servers_that_are_gone(answer: Answer) -> None:
    with serving(lambda request: answer) as server:
        found, _ = drawn(engine_at(server), 40)
    assert all(f"status {answer.status}" in str(c.error) for c in found) and len(found) == 40
    assert len(server.requests) == 40


@pytest.mark.slow
def test_a_refusal_between_failures_says_that_the_server_is_there() -> None:
    def script(request: Request) -> Answer:
        refused = request.number % 15 == 14
        return REFUSALS["403 flagged"] if refused else out_of_order("0.001")

    with serving(script) as server:
        found, _ = drawn(engine_at(server, max_retries=0), 60)
    assert sum(str(c.error).startswith(FILTERED) for c in found) == 4 and len(found) == 60


@pytest.mark.parametrize("message", ["Invalid API key", "Not authenticated", "Bad credentials"])
def test_a_403_that_names_the_key_is_a_wrong_key(message: str) -> None:
    with serving(in_turn(fails(403, message))) as server:
        with pytest.raises(ValueError, match="does not accept a request without a key"):
            drawn(engine_at(server), 5)
        with pytest.raises(ValueError, match="does not accept a request without a key"):
            judged(server, 5)
    assert len(server.requests) == 2


def test_a_prompt_about_content_filters_that_an_error_repeats_is_no_refusal() -> None:
    row = {"loc": ["body", "messages"], "msg": "too long", "input": "How do content filters work?"}
    error = Answer(status=422, payload=json.dumps({"detail": [row]}).encode())
    with serving(in_turn(says("fine"), error)) as server:
        found, _ = drawn(engine_at(server), 2)
    assert str(found[1].error).startswith("the server answered with status 422")


# a refused field is a wrong set-up


def told(said: object) -> Answer:
    """Status 422 with any JSON."""
    return Answer(status=422, payload=json.dumps(said).encode())


FIELDS = [
    (fastapi("seed"), "refuses seed.*seeded: false"),
    (fastapi("seed", nested=True), "refuses seed.*seeded: false"),
    (fails(422, "no seed", param="seed"), "refuses seed.*seeded: false"),
    (fails(400, "Unsupported parameter: 'seed'"), "refuses seed.*seeded: false"),
    (fails(400, "`temperature` is not supported"), r"refuses temperature.*generation\.temperature"),
    (fastapi("top_k"), r"refuses top_k.*engine\.extra_body"),
    (told({"detail": [{"loc": ["seed"], "msg": "Extra"}]}), "refuses seed.*seeded: false"),
    (told({"detail": [{"loc": ["body", "Chat", "seed"], "msg": "x"}]}), "refuses seed"),
    (told({"detail": "Extra inputs are not permitted: seed"}), "refuses seed.*not permitted: seed"),
    (told([{"error": {"message": 'Unknown name "seed"'}}]), "refuses seed.*Unknown name"),
    (fails(400, "Unrecognized request argument supplied: seed"), "refuses seed.*seeded: false"),
    (told({"error": "`temperature` must be strictly positive"}), "temperature.*strictly positive"),
    (told("temperature must be > 0"), r"refuses temperature.*must be > 0"),
]


@pytest.mark.parametrize(("answer", "why"), FIELDS)
def test_a_refused_field_is_one_error_after_one_request_that_names_the_key(
    answer: Answer, why: str
) -> None:
    with serving(in_turn(answer)) as server, pytest.raises(ValueError, match=why):
        drawn(engine_at(server, extra_body={"top_k": 5}), 9)
    assert len(server.requests) == 1


@pytest.mark.parametrize("field", ["seed", "temperature"])
def test_the_judge_names_its_own_keys(field: str) -> None:
    why = f"refuses {field}.*`{field}: null`"
    with serving(in_turn(fastapi(field))) as server, pytest.raises(ValueError, match=why):
        judged(server, 3)
    assert len(server.requests) == 1


@pytest.mark.parametrize(("top_p", "sent"), [(1.0, False), (0.9, True)])
def test_a_top_p_of_one_is_not_sent(top_p: float, sent: bool) -> None:
    with serving() as server:
        drawn(engine_at(server), temperature=1.0, top_p=top_p)
    assert ("top_p" in server.requests[0].body) == sent


# the name of the limit on new tokens

SAID = "Unsupported parameter: 'max_tokens' is not supported. Use 'max_completion_tokens' instead."
NAMED = {
    "code": fails(400, SAID, code="unsupported_parameter", param="max_tokens"),
    "words": fails(400, SAID),
    "bare": fails(400, "Bad request"),
    "FastAPI": fastapi("max_tokens"),
}


def knows(name: str, refusal: Answer, text: str) -> Callable[[Request], Answer]:
    """A server that takes the limit under one name only."""
    return lambda request: says(text) if name in request.body else refusal


@pytest.mark.parametrize("refusal", NAMED.values(), ids=NAMED.keys())
def test_the_other_name_is_tried_once_and_kept(refusal: Answer) -> None:
    with serving(knows("max_completion_tokens", refusal, "fine")) as server:
        found, costs = drawn(engine_at(server, max_retries=0), 4, max_new_tokens=7)
    assert [c.text for c in found] == ["fine"] * 4
    sent = [r.body.get("max_tokens") or -r.body["max_completion_tokens"] for r in server.requests]
    assert sent == [7, -7, -7, -7, -7]
    assert sum(c.requests[server.url] for c in costs) == 5
    assert costs[0].faults == {server.url: {"limit_name": 1}}


@pytest.mark.parametrize("refusal", NAMED.values(), ids=NAMED.keys())
def test_the_judge_tries_the_other_name_once_and_keeps_it(refusal: Answer) -> None:
    with serving(knows("max_completion_tokens", refusal, "Verdict: full")) as server:
        judge = judge_at(server)
        for _ in range(2):
            found = judge.score(prompts(2), responses(2))
            assert [v.refusal for v in found] == ["full", "full"]
    assert ["max_tokens" in r.body for r in server.requests] == [True, False, False, False, False]


def test_the_recipe_may_name_it_and_then_nothing_is_tried() -> None:
    name = "max_completion_tokens"
    with serving(knows(name, NAMED["code"], "Verdict: full")) as server:
        drawn(engine_at(server, max_tokens_name=name), 2)
        judged(server, 2, max_tokens_name=name)
    assert [name in r.body for r in server.requests] == [True] * 4


def test_a_server_that_takes_neither_name_is_a_wrong_set_up_that_names_the_key() -> None:
    with serving(lambda request: NAMED["code"]) as server:
        with pytest.raises(ValueError, match=r"engine\.max_tokens_name"):
            drawn(engine_at(server), 5)
        assert len(server.requests) == 2
        with pytest.raises(ValueError, match=r"judge\.max_tokens_name"):
            judged(server, 5)
        assert len(server.requests) == 4


def test_a_bare_400_that_stays_goes_back_to_the_recipes_name_and_is_a_fault_of_the_item() -> None:
    with serving(in_turn(NAMED["bare"], NAMED["bare"], says("fine"))) as server:
        found, _ = drawn(engine_at(server), 3)
    assert "status 400" in str(found[0].error) and [c.text for c in found[1:]] == ["fine", "fine"]
    assert ["max_tokens" in r.body for r in server.requests] == [True, False, True, True]


def test_a_limit_that_is_too_large_for_one_item_is_no_wrong_name() -> None:
    message = "'max_tokens' or 'max_completion_tokens' is too large: the context length is 64"
    with serving(in_turn(says("fine"), fails(400, message), says("fine"))) as server:
        found, _ = drawn(engine_at(server), 3)
    assert [c.text for c in found] == ["fine", "", "fine"] and len(server.requests) == 3


# contents and endings

TEXT = {"type": "text", "text": "Open the menu."}
THINKING = {"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ([TEXT], "Open the menu."),
        ([THINKING, TEXT, {"type": "output_text", "text": " Save."}], "Open the menu. Save."),
        (["a", "b"], "ab"),
        ([{"type": "refusal", "refusal": "No."}], "No."),
        (TEXT, "Open the menu."),
        ([{"text": "a"}, {"type": "text", "text": {"value": "b"}}], "ab"),
    ],
)
def test_the_texts_of_parts_are_joined_without_the_thinking(content: object, text: str) -> None:
    with serving(lambda request: body(content)) as server:
        (found,), (cost,) = drawn(engine_at(server))
    assert (found.text, found.finish_reason, found.error) == (text, "stop", None)
    assert len(server.requests) == 1 and cost.empty is None


def test_a_refusal_beside_an_empty_content_is_what_the_model_said() -> None:
    with serving(lambda request: body("", refusal="I can't help with that.")) as server:
        (found,), _ = drawn(engine_at(server))
    assert (found.text, found.error) == ("I can't help with that.", None)


@pytest.mark.parametrize("content", [5, True])
def test_a_content_that_is_no_text_is_no_empty_answer(content: object) -> None:
    with serving(lambda request: body(content)) as server:
        (found,), _ = drawn(engine_at(server))
        (verdict,) = judged(server)
    assert f"a message whose content is '{content}'" in str(found.error)
    assert f"a message whose content is '{content}'" in str(verdict.unscored)


@pytest.mark.parametrize("content", ["", None])
def test_an_error_inside_a_choice_is_no_empty_answer(content: object) -> None:
    choice = {"finish_reason": "stop", "message": {"content": content}, "error": {"message": "up"}}
    with serving(lambda request: raw(json.dumps({"choices": [choice]}).encode())) as server:
        (found,), _ = drawn(engine_at(server))
    assert found.error == "the server sent an error in place of a text (up)"


@pytest.mark.parametrize("content", [[{"type": "text", "text": "Verdict: "}, "full"], [THINKING]])
def test_the_judge_reads_parts_too(content: list[Any]) -> None:
    with serving(lambda request: body(content)) as server:
        (found,) = judged(server)
    full = len(content) == 2
    assert found.refusal == ("full" if full else None)
    assert full or found.unscored == (
        "the judge's reply is empty (the server sent reasoning and no text)"
    )


@pytest.mark.parametrize(
    ("answer", "finish", "why"),
    [
        (body(None), "stop", "the server sent a message without text"),
        (body([]), "stop", "the server sent a message without text"),
        (body(None, reasoning_content="hm"), "stop", "the server sent reasoning and no text"),
        (body(None, reasoning="hm"), "stop", "the server sent reasoning and no text"),
        (body([THINKING]), "stop", "the server sent reasoning and no text"),
        (body("", reasoning_content="hm"), "stop", "the server sent reasoning and no text"),
        (body([{"type": "image_url"}]), "stop", "the server sent a message without text"),
        (body(None, "LENGTH", reasoning="hm"), "length", "the server sent reasoning and no text"),
    ],
)
def test_no_content_is_an_empty_answer_after_one_request_with_its_reason(
    answer: Answer, finish: str, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    with serving(lambda request: answer) as server:
        (found,), (cost,) = drawn(engine_at(server))
    assert (found.text, found.finish_reason, found.error) == ("", finish, None)
    assert cost.empty == why and len(server.requests) == 1
    assert f"1 responses of m are empty: {why}" in caplog.text


@pytest.mark.parametrize(
    ("finish", "read"), [("STOP", "stop"), ("Stop", "stop"), ("MAX_TOKENS", "length")]
)
def test_a_finish_reason_is_read_in_any_case(finish: str, read: str) -> None:
    with serving(lambda request: says("fine", finish)) as server:
        (found,), _ = drawn(engine_at(server))
    assert (found.text, found.finish_reason, len(server.requests)) == ("fine", read, 1)


@pytest.mark.parametrize("finish", ["LENGTH", "MAX_TOKENS", "max_length"])
def test_a_reply_of_the_judge_that_is_cut_off_is_seen_in_any_case(finish: str) -> None:
    with serving(lambda request: says("Verdict: none", finish)) as server:
        (found,) = judged(server)
    assert "raise judge.max_tokens" in str(found.unscored)


@pytest.mark.parametrize(("finish", "calls"), [("tool_calls", []), ("stop", [{"id": "1"}])])
def test_a_model_that_calls_a_tool_is_asked_once(finish: str, calls: list[Any]) -> None:
    with serving(lambda request: body(None, finish, tool_calls=calls)) as server:
        (found,), _ = drawn(engine_at(server))
    assert found.error == "the model called a tool and said nothing" and len(server.requests) == 1


def test_an_error_with_status_200_is_tried_again_and_named() -> None:
    error = raw(b'{"error": {"message": "Provider returned error", "code": 502}}')
    with serving(in_turn(error)) as server:
        (found,), _ = drawn(engine_at(server))
        (verdict,) = judged(server)
    assert "Provider returned error" in str(found.error) and len(server.requests) == 4
    assert str(verdict.unscored).startswith("the judge gave no reply (its server sent an error: ")


@pytest.mark.parametrize(
    "script",
    [
        lambda key: says("x", f"Bearer {key}"),
        lambda key: raw(json.dumps({"error": {"message": f"bad {key}", "code": 1}}).encode()),
        lambda key: raw(json.dumps({"error": f"flagged {key}"}).encode()),
        lambda key: fails(403, f"flagged {key}"),
        lambda key: says(f"You sent {key}."),
    ],
    ids=["finish", "error", "filter", "403", "text"],
)
def test_a_key_that_a_reply_repeats_is_not_shown(
    script: Callable[[str], Answer], monkeypatch: pytest.MonkeyPatch
) -> None:
    key = "sk-Test-0123456789ABCDEF"
    monkeypatch.setenv("TEST_API_KEY", key)
    with serving(lambda request: script(key)) as server:
        settings = Settings(base_url=(server.url,), api_key_env="TEST_API_KEY", max_retries=0)
        (found,), _ = drawn(OpenAIEngine(settings, name="m"))
        (verdict,) = judged(server, api_key_env="TEST_API_KEY")
    assert "[key]" in f"{found.error} {found.text}"
    assert key.lower() not in f"{found} {verdict}".lower()


def test_a_key_that_may_be_a_word_leaves_texts_unchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_API_KEY", "EMPTY")
    with serving(lambda request: says("The list is EMPTY.")) as server:
        settings = Settings(base_url=(server.url,), api_key_env="TEST_API_KEY")
        (found,), _ = drawn(OpenAIEngine(settings, name="m"))
    assert found.text == "The list is EMPTY."


# limits


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_is_not_followed_and_is_a_wrong_address(status: int) -> None:
    with serving() as other:
        there = f"{other.url}/chat/completions"
        away = Answer(status=status, headers={"Location": there}, payload=b"")
        with serving(lambda request: away) as server:
            with pytest.raises(ValueError, match=rf"engine\.base_url .*status {status}"):
                drawn(engine_at(server), 3)
            with pytest.raises(ValueError, match=rf"judge\.base_url .*status {status}"):
                judged(server, 3)
    assert other.requests == [] and len(server.requests) == 2


@pytest.mark.parametrize("packed", [False, True])
def test_a_reply_over_the_limit_fails_its_item_and_is_not_asked_for_again(packed: bool) -> None:
    import gzip

    text = json.dumps({"choices": [{"message": {"content": "A" * 3_000_000}}]}).encode()
    big = Answer(payload=text)
    if packed:
        big = Answer(payload=gzip.compress(text), headers={"Content-Encoding": "gzip"})
    with serving(in_turn(says("Verdict: full"), big, says("Verdict: full"))) as server:
        found, _ = drawn(engine_at(server, max_reply_bytes=100_000), 3)
        assert [c.text for c in found] == ["Verdict: full", "", "Verdict: full"]
        assert "more than 100000 bytes" in str(found[1].error) and len(server.requests) == 3
    with serving(in_turn(says("Verdict: full"), big, says("Verdict: full"))) as server:
        verdicts = judged(server, 3, max_reply_bytes=100_000, max_retries=2)
    assert [v.refusal for v in verdicts] == ["full", None, "full"] and len(server.requests) == 3
    assert "more than 100000 bytes" in str(verdicts[1].unscored)


def test_a_packed_reply_within_the_limit_is_read() -> None:
    import gzip

    payload = gzip.compress(b'{"choices": [{"message": {"content": "fine"}}]}')
    packed = Answer(payload=payload, headers={"Content-Encoding": "gzip"})
    with serving(in_turn(packed)) as server:
        (found,), _ = drawn(engine_at(server))
    assert found.text == "fine"


@pytest.mark.parametrize(
    "payload",
    [
        b'{"choices":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"usage": {"prompt_tokens": ' + b"9" * 5000 + b"}}",
    ],
    ids=["deep", "long integer"],
)
def test_json_that_cannot_be_read_is_a_fault_of_one_item(payload: bytes) -> None:
    script = in_turn(says("Verdict: full"), raw(payload), says("Verdict: full"))
    with serving(script) as server:
        found, _ = drawn(engine_at(server, max_retries=0), 3)
    assert [c.text for c in found] == ["Verdict: full", "", "Verdict: full"]
    assert "JSON" in str(found[1].error)
    with serving(script) as server:
        verdicts = judged(server, 3)
    assert [v.refusal for v in verdicts] == ["full", None, "full"]
    assert "JSON" in str(verdicts[1].unscored)


def test_a_reply_that_drips_is_given_up_after_the_whole_time_of_a_try() -> None:
    dripping = Answer("Verdict: full", drip_seconds=0.05)  # a byte each time, for about 15 seconds
    with serving(in_turn(dripping)) as server:
        start = time.monotonic()
        (found,), (cost,) = drawn(engine_at(server, timeout_seconds=0.4, max_retries=1))
        (verdict,) = judged(server, timeout_seconds=0.4)
        took = time.monotonic() - start
    assert 1.2 <= took < 6 and len(server.requests) == 3
    assert found.error == "the server did not answer in time"
    assert cost.faults == {server.url: {"timeout": 2}}
    assert str(verdict.unscored).startswith("the judge gave no reply")


# a proxy of the environment


@pytest.mark.parametrize("name", ["HTTP_PROXY", "ALL_PROXY"])
def test_a_proxy_before_a_server_on_this_machine_is_named(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving() as server, serving(lambda request: fails(403, "denied")) as proxy:
        address = proxy.url.removesuffix("/v1")
        monkeypatch.setenv(name.lower(), address)
        (found,), _ = drawn(engine_at(server))
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        (direct,), _ = drawn(engine_at(server))
    assert f"{name} is set" in str(found.error) and "NO_PROXY=127.0.0.1" in str(found.error)
    assert address not in str(found.error) and direct.error is None


def test_a_proxy_that_is_not_there_is_named_beside_the_address(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with serving() as gone:
        address = gone.url.removesuffix("/v1")
    monkeypatch.setenv("http_proxy", address)
    with serving() as server:
        with pytest.raises(ValueError, match=r"cannot be reached.*HTTP_PROXY is set"):
            drawn(engine_at(server, max_retries=0))
        with pytest.raises(ValueError, match=r"cannot be reached.*HTTP_PROXY is set"):
            judged(server)
