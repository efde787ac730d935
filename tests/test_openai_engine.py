"""The engine `openai` against servers on loopback: what is sent, what comes back, faults, balance
and budget."""

import asyncio
import json
import socket
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from fault_proxy import KINDS, Faults, at, faulty, share
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
    too_many,
)

from overrefusal_po.engines._costs import Cost
from overrefusal_po.engines._endpoints import Endpoint, Fault, next_endpoint, retry_after
from overrefusal_po.engines._openai_session import BudgetSpent, ServersGone
from overrefusal_po.engines.openai import OpenAIEngine, Settings, engine, note, request_seed
from overrefusal_po.plugins import find_plug
from overrefusal_po.records import Completion, Message, Prompt, Sampling

KEY = "sk-test-0123456789abcdef"
QUICK: dict[str, Any] = {"api_key_env": None, "backoff_seconds": 0.005, "concurrency": 4}


pytestmark = pytest.mark.usefixtures("no_key_lies_about")


def prompt(number: int, text: str = "How do I kill a Python process?", **fields: Any) -> Prompt:
    """A prompt with a plain id."""
    return Prompt.of(f"{text} ({number})", kind="benign", **fields).model_copy(
        update={"id": f"p{number}"}
    )


def engine_at(*urls: str, **settings: Any) -> OpenAIEngine:
    """An engine for loopback servers."""
    return OpenAIEngine(Settings(base_url=urls, **{**QUICK, **settings}), name="m")


def drawn(
    made: OpenAIEngine, prompts: list[Prompt], sampling: Sampling | None = None, **options: Any
) -> tuple[list[Completion], list[Cost]]:
    """(completions by prompt and sample, costs) of one pass."""
    costs: list[Cost] = []
    found = list(made.complete(prompts, sampling or Sampling(), spend=costs.append, **options))
    return sorted(found, key=lambda c: (int(c.prompt_id[1:]), c.sample)), costs


def unused_url() -> str:
    """An address without a server."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{other.getsockname()[1]}/v1"


# what is sent, and what comes back


def test_a_prompt_is_sent_as_a_conversation_and_its_answer_is_a_completion() -> None:
    with serving(lambda request: says("Type kill.")) as server:
        sampling = Sampling(max_new_tokens=7, temperature=0.5, top_p=0.9, seed=3)
        (completion,), (cost,) = drawn(engine_at(server.url), [prompt(1)], sampling)
    (request,) = server.requests
    assert request.path == "/v1/chat/completions"
    assert request.body == {
        "model": "m",
        "messages": [{"role": "user", "content": "How do I kill a Python process? (1)"}],
        "max_tokens": 7,
        "temperature": 0.5,
        "top_p": 0.9,
        "seed": request_seed(3, "p1", 0),
    }
    assert (completion.prompt_id, completion.text, completion.model, completion.engine) == (
        "p1",
        "Type kill.",
        "m",
        "openai",
    )
    assert (completion.sampling, completion.finish_reason, completion.error) == (
        sampling,
        "stop",
        None,
    )
    assert (cost.requests, cost.faults, cost.answered_by) == ({server.url: 1}, {}, server.url)
    assert (cost.prompt_tokens, cost.completion_tokens) == (len(request.text), len("Type kill."))


def test_each_sample_is_a_request_of_its_own_with_a_seed_of_its_own() -> None:
    with serving(lambda request: says(str(request.body["seed"]))) as server:
        found, _ = drawn(engine_at(server.url), [prompt(1), prompt(2)], samples=3)
    assert [(c.prompt_id, c.sample) for c in found] == [
        (p, n) for p in ("p1", "p2") for n in range(3)
    ]
    assert [c.text for c in found] == [str(request_seed(0, c.prompt_id, c.sample)) for c in found]
    assert len({c.text for c in found}) == 6 and len({c.id for c in found}) == 6
    assert all("n" not in request.body for request in server.requests)


def test_a_seed_follows_from_seed_prompt_and_sample_and_fits_31_bits() -> None:
    seeds = {request_seed(*parts) for parts in [(0, "a", 0), (1, "a", 0), (0, "b", 0), (0, "a", 1)]}
    assert len(seeds) == 4 and all(0 <= seed < 2**31 for seed in seeds)
    assert request_seed(0, "a", 0) == request_seed(0, "a", 0)


def test_what_there_is_already_is_not_asked_for() -> None:
    with serving() as server:
        found, _ = drawn(
            engine_at(server.url), [prompt(1), prompt(2)], samples=2, had={("p1", 0), ("p2", 1)}
        )
    assert [(c.prompt_id, c.sample) for c in found] == [("p1", 1), ("p2", 0)] and len(
        server.requests
    ) == 2


def test_system_prompt_and_template_options_go_along_and_control_tokens_do_not() -> None:
    made = OpenAIEngine(
        Settings(
            base_url=("http://127.0.0.1:1/v1",),
            api_key_env=None,
            extra_body={"top_k": 5},
            seeded=False,
        ),
        name="m",
        system_prompt="Be brief.",
        template_kwargs={"enable_thinking": False},
        neutral=lambda text: text.replace("<|im_end|>", "<im_end>"),
    )
    body = made.body(prompt(1, "Hello <|im_end|>"), Sampling(), 0)
    assert body["messages"][0] == {"role": "system", "content": "Be brief."}
    assert body["messages"][1]["content"] == "Hello <im_end> (1)" and "seed" not in body
    assert body["extra_body"] == {"top_k": 5, "chat_template_kwargs": {"enable_thinking": False}}
    own = prompt(2).model_copy(
        update={
            "messages": (
                Message(role="system", content="Mine."),
                Message(role="user", content="Hi"),
            )
        }
    )
    assert [m["content"] for m in made.body(own, Sampling(), 0)["messages"]] == ["Mine.", "Hi"]


def test_raw_text_goes_to_plain_completions() -> None:
    with serving(lambda request: says("and so on")) as server:
        raw_prompt = prompt(1, raw_text="<<SYS>> once", assistant_prefix=" upon")
        (completion,), _ = drawn(engine_at(server.url), [raw_prompt])
    (request,) = server.requests
    assert request.path == "/v1/completions" and request.body["prompt"] == "<<SYS>> once upon"
    assert completion.text == "and so on" and "messages" not in request.body


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (Answer(status=404, payload=b'{"detail":"Not Found"}'), "has no plain completions"),
        (fails(404, "The model `m` does not exist."), "does not know the model 'm'"),
        (fails(404, "no such thing", code="model_not_found"), "does not know the model 'm'"),
    ],
)
def test_a_server_without_plain_completions_is_not_one_that_does_not_know_the_model(
    answer: Answer, why: str
) -> None:
    with (
        serving(lambda request: answer) as server,
        pytest.raises(ValueError, match=why),
    ):
        drawn(engine_at(server.url), [prompt(1, raw_text="once upon")])


def test_a_begun_answer_is_sent_only_to_servers_that_continue_it() -> None:
    begun = prompt(1, assistant_prefix="Sure, here")
    with serving(lambda request: says(" is how")) as server:
        with pytest.raises(ValueError, match=r"engine\.continue_final_message: true"):
            drawn(engine_at(server.url), [begun])
        assert not server.requests
        (completion,), _ = drawn(engine_at(server.url, continue_final_message=True), [begun])
    body = server.requests[0].body
    assert body["messages"][-1] == {"role": "assistant", "content": "Sure, here"}
    assert body["continue_final_message"] is True and body["add_generation_prompt"] is False
    assert completion.text == " is how"


@pytest.mark.parametrize(
    ("finish", "found"),
    [("stop", "stop"), ("eos_token", "stop"), (None, "stop"), ("length", "length")],
)
def test_the_finish_reasons_of_all_servers_are_two(finish: str | None, found: str) -> None:
    with serving(lambda request: says("text", finish)) as server:
        (completion,), _ = drawn(engine_at(server.url), [prompt(1)])
    assert completion.finish_reason == found


def test_an_empty_answer_and_half_a_surrogate_are_answers() -> None:
    with serving(in_turn(says(""), says("broken \ud83d end"))) as server:
        found, _ = drawn(engine_at(server.url, concurrency=1), [prompt(1), prompt(2)])
    assert [c.text for c in found] == ["", "broken ? end"]
    assert found[1].model_dump_json()


@pytest.mark.parametrize("content", [None, "", " \n"])
def test_a_refusal_beside_the_content_is_what_the_model_said(content: str | None) -> None:
    message = {"role": "assistant", "content": content, "refusal": "I can't help with that."}
    body = {"choices": [{"index": 0, "finish_reason": "stop", "message": message}]}
    with serving(lambda request: raw(json.dumps(body).encode())) as server:
        (completion,), (cost,) = drawn(engine_at(server.url), [prompt(1)])
    assert completion.text == "I can't help with that." and cost.prompt_tokens == 0


def test_it_works_where_an_event_loop_runs_already() -> None:
    async def notebook(url: str) -> int:
        return len(drawn(engine_at(url), [prompt(n) for n in range(5)])[0])

    with serving() as server:
        assert asyncio.run(notebook(server.url)) == 5


# how many at a time


def test_no_more_are_on_their_way_than_the_recipe_says_and_prompts_are_read_as_needed() -> None:
    read: list[int] = []

    def prompts() -> Iterator[Prompt]:
        for number in range(40):
            read.append(number)
            yield prompt(number)

    with serving(lambda request: Answer("x", delay_seconds=0.05)) as server:
        ahead = []
        for given, _ in enumerate(
            engine_at(server.url, concurrency=3).complete(prompts(), Sampling())
        ):
            ahead.append(len(read) - given)
    assert server.most_at_once == 3 and max(ahead) <= 8 and len(ahead) == 40


def test_several_servers_share_the_work() -> None:
    with (
        serving(lambda r: Answer("a", delay_seconds=0.005)) as one,
        serving(lambda r: Answer("b", delay_seconds=0.005)) as two,
    ):
        found, costs = drawn(
            engine_at(one.url, two.url, concurrency=2), [prompt(n) for n in range(40)]
        )
    assert min(len(one.requests), len(two.requests)) >= 10 and len(found) == 40
    assert Counter(c.answered_by for c in costs) == {
        one.url: len(one.requests),
        two.url: len(two.requests),
    }


def test_next_comes_the_server_with_the_least_on_its_way_but_not_the_one_that_just_failed() -> None:
    one, two, three = (Endpoint(f"http://{name}/v1", None) for name in "abc")
    one.in_flight, two.in_flight, three.in_flight = 3, 1, 2
    servers = [one, two, three]
    assert next_endpoint(servers, 4, None) is two and next_endpoint(servers, 4, two) is three
    two.record(Fault("429", "", True, wait_seconds=60.0), 0.5)
    assert next_endpoint(servers, 4, None) is three
    waits = next_endpoint([two], 4, None)
    assert isinstance(waits, float) and 50 < waits <= 60
    assert next_endpoint(servers, 2, None) == pytest.approx(
        0.02
    )  # two waits, the others are at their limit


def test_a_server_that_is_not_there_is_left_alone_for_longer_each_time() -> None:
    server = Endpoint("http://a/v1", None)
    waits = []
    for _ in range(4):
        server.record(Fault("unreachable", "", True), 1.0)
        waits.append(next_endpoint([server], 4, None))
    assert waits == pytest.approx([1.0, 2.0, 4.0, 8.0], abs=0.5)
    server.record(None, 1.0)
    assert server.faults_in_row == 0


def test_the_manifest_says_where_completions_came_from_and_that_seeds_are_the_servers() -> None:
    assert note(Settings(base_url=("http://a/v1", "http://b/v1"))) == (
        "openai (http://a/v1, http://b/v1; seeds were sent, and what a server makes of them is its "
        "own)"
    )
    assert "no seeds" in note(Settings(seeded=False))


def test_a_server_that_is_not_there_costs_some_tries_and_no_prompt() -> None:
    gone = unused_url()
    with serving() as server:
        found, costs = drawn(
            engine_at(gone, server.url, backoff_seconds=0.05), [prompt(n) for n in range(30)]
        )
    assert [c.error for c in found] == [None] * 30 and len(server.requests) == 30
    tried = sum(c.requests.get(gone, 0) for c in costs)
    assert 1 <= tried == sum(c.faults[gone]["unreachable"] for c in costs if gone in c.faults) < 30


# faults


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_fault_is_tried_again(kind: str) -> None:
    settings = {"timeout_seconds": 0.5} if kind == "slow" else {}
    with serving() as server, faulty(server.url, at(_0=kind)) as proxy:
        (completion,), (cost,) = drawn(engine_at(proxy.url, **settings), [prompt(1)])
    assert completion.text == "How do I kill a Python process? (1)" and completion.error is None
    named = {"html": "502", "slow": "timeout", "reset": "broken", "truncated": "broken"}.get(
        kind, kind
    )
    assert (
        cost.faults == {proxy.url: {named: 1}}
        and cost.requests == {proxy.url: 2}
        and proxy.requests == 2
    )


def test_a_prompt_that_fails_each_time_ends_with_its_reason_and_holds_nobody_up() -> None:
    def script(request: Request) -> Answer:
        if "poison" in request.text:
            return out_of_order("0.001")
        return fails(400, "too long", param="messages") if "long" in request.text else says("fine")

    prompts = [prompt(1), prompt(2, "poison"), prompt(3, "too long"), prompt(4)]
    with serving(script) as server:
        found, costs = drawn(engine_at(server.url, max_retries=2), prompts)
    assert [c.finish_reason for c in found] == ["stop", "error", "error", "stop"]
    assert "status 500" in str(found[1].error) and "status 400" in str(found[2].error)
    by_prompt = {c.prompt_id: c for c in costs}
    assert by_prompt["p2"].requests == {server.url: 3} and by_prompt["p2"].answered_by is None
    assert by_prompt["p3"].requests == {server.url: 1}  # another try would not help


@pytest.mark.slow
def test_with_a_fifth_of_faults_every_prompt_ends_and_the_ledger_adds_up() -> None:
    def script(request: Request) -> Answer:
        return fails(500, "always") if "poison" in request.text else says(f"{request.body['seed']}")

    prompts = [prompt(n, "poison" if n % 40 == 7 else "fine") for n in range(120)]
    with serving(script) as server, faulty(server.url, share(0.2)) as proxy:
        found, costs = drawn(engine_at(proxy.url, concurrency=8, max_retries=8), prompts, samples=2)
    keys = [(c.prompt_id, c.sample) for c in found]
    assert keys == [
        (f"p{n}", sample) for n in range(120) for sample in range(2)
    ]  # all, and none twice
    failed = {c.prompt_id for c in found if c.error}
    assert failed == {"p7", "p47", "p87"}
    assert all(c.text == str(request_seed(0, c.prompt_id, c.sample)) for c in found if not c.error)
    requests = sum(c.requests[proxy.url] for c in costs)
    faults: Counter[str] = Counter()
    for cost in costs:
        faults.update(cost.faults.get(proxy.url, {}))
    assert requests == proxy.requests and requests == 234 + faults.total()
    assert (
        faults["429"] == proxy.injected["429"] > 0 and faults["502"] == proxy.injected["html"] > 0
    )
    assert faults["malformed"] == proxy.injected["malformed"] > 0
    assert faults["broken"] == proxy.injected["reset"] + proxy.injected["truncated"]
    assert sum(c.completion_tokens for c in costs) == sum(len(c.text) for c in found)


@pytest.mark.parametrize(
    "payload",
    [
        b"[]",
        b'"text"',
        b"null",
        b"{}",
        b'{"choices": []}',
        b'{"choices": [{"finish_reason": "abort", "text": "x"}]}',
    ],
)
def test_what_is_no_completion_is_a_fault_and_not_an_empty_answer(payload: bytes) -> None:
    with serving(in_turn(raw(payload), says("fine"))) as server:
        (completion,), (cost,) = drawn(engine_at(server.url), [prompt(1)])
    assert completion.text == "fine" and cost.faults == {server.url: {"malformed": 1}}


def test_a_withheld_answer_is_a_failure_with_what_it_cost() -> None:
    with serving(in_turn(says("fine"), says("", "content_filter"))) as server:
        found, costs = drawn(engine_at(server.url, concurrency=1), [prompt(1), prompt(2)])
    assert found[1].finish_reason == "error" and "content filter" in str(found[1].error)
    assert costs[1].prompt_tokens > 0 and len(server.requests) == 2


def test_the_wait_that_a_server_asks_for_is_kept() -> None:
    for script in (
        in_turn(too_many("0.3"), says("fine")),
        in_turn(out_of_order("0.3"), says("fine")),
    ):
        times: list[float] = []

        def timed(request: Request, script: Any = script, times: list[float] = times) -> Answer:
            import time

            times.append(time.monotonic())
            answer: Answer = script(request)
            return answer

        with serving(timed) as server:
            drawn(engine_at(server.url), [prompt(1)])
        assert times[1] - times[0] >= 0.3


def test_retry_after_is_read_in_all_its_forms() -> None:
    assert retry_after({"retry-after": "2.5"}) == 2.5
    assert retry_after({"retry-after-ms": "250", "retry-after": "9"}) == 0.25
    assert retry_after({"retry-after": "Fri, 01 Jan 2016 00:00:00 GMT"}) == 0.0
    assert retry_after({"retry-after": "1e9"}) == 600.0
    assert retry_after({"retry-after": "soon"}) is None and retry_after({}) is None


def test_servers_that_are_gone_stop_the_run_and_count_no_prompt_as_failed() -> None:
    def script(request: Request) -> Answer:
        return says("fine") if request.number < 3 else fails(503, "no worker")

    found: list[Completion] = []
    costs: list[Cost] = []
    with serving(script) as server:
        made = engine_at(server.url, max_retries=1, concurrency=2)
        with pytest.raises(ServersGone, match=r"the last 20 prompts got no response.*status 503"):
            for completion in made.complete(
                (prompt(n) for n in range(1000)), Sampling(), spend=costs.append
            ):
                found.append(completion)
    assert [c.text for c in found] == ["fine"] * 3
    assert sum(c.requests[server.url] for c in costs) in range(
        len(server.requests) - 2, len(server.requests) + 1
    )


# what is wrong with the set-up


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (fails(401, f"bad key {KEY}"), "does not accept the key in TEST_API_KEY"),
        (fails(404, "no such model"), "does not know the model 'm'"),
        (fails(400, "no seed here", param="seed"), "refuses seed for 'm'"),
        (fails(429, "quota", code="insufficient_quota"), "no quota left"),
    ],
)
def test_a_wrong_setup_is_one_error_after_one_request(
    answer: Answer, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEST_API_KEY", KEY)
    with serving(in_turn(answer)) as server:
        made = engine_at(server.url, api_key_env="TEST_API_KEY")
        with pytest.raises(ValueError, match=message) as caught:
            drawn(made, [prompt(n) for n in range(50)])
    assert len(server.requests) == 1 and KEY not in str(caught.value)


def test_a_server_that_is_not_there_is_a_wrong_address() -> None:
    with pytest.raises(ValueError, match=r"cannot be reached\. Start the server"):
        drawn(engine_at(unused_url()), [prompt(1)])


def test_a_missing_key_is_named_before_any_work() -> None:
    with pytest.raises(ValueError, match="OPENAI_API_KEY, which is not set"):
        OpenAIEngine(Settings(), name="m")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"api_key": KEY}, "api_key is not a known key"),
        ({"api_key_env": KEY}, "no environment variable's name"),
        ({"base_url": f"https://user:{KEY}@host/v1"}, "no user, password or query"),
        ({"base_url": []}, "no address such as"),
        ({"base_url": "localhost:8000"}, "no address such as"),
        ({"base_url": ["http://a/v1", "http://a/v1"]}, "there twice"),
        ({"extra_body": {"seed": 3}}, "seed is set by the recipe's own keys"),
        ({"extra_body": {"api_key": KEY}}, "api_key looks like a key.*api_key_env"),
        ({"extra_body": {"a": [{"X-Auth-Token": KEY}]}}, "X-Auth-Token looks like a key"),
        ({"extra_body": {"token": KEY}}, "token looks like a key"),
        ({"concurrency": 0}, "greater than or equal to 1"),
    ],
)
def test_wrong_settings_are_named_and_no_key_is_repeated(
    values: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        find_plug("engines", {"name": "openai", **values})
    assert KEY not in str(caught.value)


def test_the_plug_takes_the_name_of_the_recipes_model_unless_the_server_has_another() -> None:
    section = {"model_name_or_path": "org/model"}
    for given, name in ((None, "org/model"), ("served", "served")):
        settings = Settings(base_url=("http://localhost:1/v1",), api_key_env=None, model=given)
        made = engine(
            settings,
            section,
            None,
            name="org/model",
            system_prompt="S",
            template_kwargs={},
            batch_size=1,
        )
        assert made.name == name and made.system_prompt == "S"


# the budget


def test_a_spent_budget_stops_cleanly_and_a_greater_one_goes_on() -> None:
    prompts = [prompt(n) for n in range(30)]
    found: list[Completion] = []
    costs: list[Cost] = []

    def go_on(server: Server, budget: int) -> None:
        made = engine_at(server.url, token_budget=budget, concurrency=2)
        had = {(c.prompt_id, c.sample) for c in found}
        spent = sum(c.prompt_tokens + c.completion_tokens for c in costs)
        for completion in made.complete(
            prompts, Sampling(), had=had, spent_tokens=spent, spend=costs.append
        ):
            found.append(completion)

    with serving(lambda request: says("x" * 10)) as server:
        each = len(prompts[0].text) + 10
        with pytest.raises(BudgetSpent, match="Raise it, and the same command goes on"):
            go_on(server, 10 * each)
        assert 10 <= len(found) <= 12  # what was on its way is not thrown away
        with pytest.raises(BudgetSpent):
            go_on(server, 10 * each)
        assert len(server.requests) == len(found)
        go_on(server, 1000 * each)
    assert len(found) == 30 == len(server.requests)


def test_a_budget_needs_a_server_that_says_what_it_used() -> None:
    body = {
        "choices": [
            {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "x"}}
        ]
    }
    with (
        serving(lambda request: raw(json.dumps(body).encode())) as server,
        pytest.raises(ValueError, match="token_budget"),
    ):
        drawn(engine_at(server.url, token_budget=5), [prompt(1)])


def test_the_proxy_spoils_what_it_says() -> None:
    faults: Faults = share(0.2)
    hit = [kind for number in range(1000) if (kind := faults(number))]
    assert 150 < len(hit) < 250 and set(hit) == set(KINDS) - {"slow"}
