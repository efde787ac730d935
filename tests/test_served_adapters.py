"""`engine.adapter`: an adapter folder on servers that hold its base. The servers run a real tiny model
with peft, and speak vLLM's or SGLang's protocol (`lora_server`)."""

import asyncio
import json
import logging
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import Style
from lora_server import LoraServer, lora_server
from openai_server import Answer, Request, fails, serving
from test_openai_engine import unused_url
from tiny_subject import lora
from typer.testing import CliRunner

from overrefusal_po.checks import check_stage
from overrefusal_po.cli import app, main
from overrefusal_po.curate.checks import check_curation
from overrefusal_po.engines._adapter_folder import served_adapter
from overrefusal_po.engines._adapter_server import AdapterAt
from overrefusal_po.engines._openai_setup import NO_KEY, make_client
from overrefusal_po.engines.openai import OpenAIEngine, Settings, inputs
from overrefusal_po.engines.transformers import TransformersEngine
from overrefusal_po.evaluate.measured_how import measured_how
from overrefusal_po.model.bases import is_base
from overrefusal_po.pipeline import stage_inputs
from overrefusal_po.recipe.load import check_body
from overrefusal_po.records import Completion, Outcome, Prompt, Sampling, read_jsonl
from overrefusal_po.run.complete import draw

ROOT = Path(__file__).parents[1]
LOADS, UNLOADS = "/v1/load_lora_adapter", "/v1/unload_lora_adapter"
GREEDY = Sampling(max_new_tokens=8)
PROMPTS = [
    Prompt.of(f"How do I {what}?", kind="benign")
    for what in ("kill a process", "pick a lock", "stop a fox", "hang a picture", "beat an egg")
]
QUICK: dict[str, Any] = {"api_key_env": None, "backoff_seconds": 0.005, "max_retries": 2}


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def base(styles: dict[str, Style]) -> Style:
    """The servers' model."""
    return styles["llama"]


@pytest.fixture(scope="module")
def adapters(base: Style, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two trials of one sweep."""
    folder = tmp_path_factory.mktemp("sweep")
    model = base.make_model()
    model.name_or_path = str(base.folder)
    for seed, name in enumerate(("one", "two")):
        lora(model, folder / name / "adapter", seed=seed, r=4, scale=0.6)
    return {name: folder / name / "adapter" for name in ("one", "two")}


def engine_at(*servers: Any, **settings: Any) -> OpenAIEngine:
    """The engine for some servers."""
    urls = tuple(getattr(server, "url", server) for server in servers)
    return OpenAIEngine(Settings(base_url=urls, **{**QUICK, **settings}), name="base")


def said(engine: Any) -> dict[str, str]:
    """{prompt: text}; no prompt fails."""
    found = {c.prompt_id: c for c in engine.complete(PROMPTS, GREEDY)}
    assert [c.error for c in found.values()] == [None] * len(PROMPTS)
    return {p.text: found[p.id].text for p in PROMPTS}


def in_process(base: Style, adapter: Path | None) -> dict[str, str]:
    """What the model says here, with the adapter on it."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base.folder)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, adapter)
    return said(TransformersEngine(model.eval(), base.template, name="here", batch_size=1))


def paths(server: Any) -> list[str]:
    """Where the requests went, in order."""
    return [request.path for request in server.requests]


def count(server: Any, path: str) -> int:
    """How many requests went there."""
    return paths(server).count(path)


def name_of(adapter: Path) -> str:
    """Its name at a server."""
    return served_adapter(str(adapter)).name


# what is served


@pytest.mark.parametrize("sglang", [False, True], ids=["vllm", "sglang"])
def test_trials_of_a_sweep_are_measured_one_behind_the_other_on_one_server(
    base: Style, adapters: dict[str, Path], sglang: bool
) -> None:
    """Each says what it says in process, and so does the base before and behind them."""
    with lora_server(base.folder, sglang=sglang) as server:
        before = said(engine_at(server))
        found = {name: said(engine_at(server, adapter=str(adapters[name]))) for name in adapters}
        after = said(engine_at(server))
        assert server.names == {}
    assert before == after == in_process(base, None)
    assert found == {name: in_process(base, adapters[name]) for name in adapters}
    assert before != found["one"] != found["two"] != before


def test_it_is_loaded_at_every_server_before_the_first_prompt_and_unloaded_at_the_end(
    base: Style, adapters: dict[str, Path]
) -> None:
    path, loaded = str(adapters["one"]), []

    class Noting(LoraServer):
        def complete(self, body: dict[str, Any]) -> Answer:
            loaded.append(bool(a.names and b.names))
            return super().complete(body)

    with lora_server(base.folder) as a, lora_server(base.folder) as b:
        a.__class__ = b.__class__ = Noting
        engine = engine_at(a, b, adapter=path, concurrency=1)
        assert said(engine) == in_process(base, adapters["one"])
        assert loaded == [True] * len(PROMPTS)
        for server in (a, b):
            loads = [r for r in server.requests if r.path == LOADS]
            assert [r.body for r in loads] == [
                {"lora_name": name_of(adapters["one"]), "lora_path": path}
            ]
            assert paths(server)[0] == LOADS and paths(server)[-1] == UNLOADS
            chats = [r.body["model"] for r in server.requests if r.path.endswith("completions")]
            assert chats and set(chats) == {name_of(adapters["one"])}
            assert server.names == {}


def test_completions_name_the_base_and_the_adapters_content(
    base: Style, adapters: dict[str, Path]
) -> None:
    with lora_server(base.folder) as server:
        engine = engine_at(server, adapter=str(adapters["one"]))
        [found, *_] = engine.complete(PROMPTS[:1], GREEDY)
    assert found.model == engine.name == f"base+{name_of(adapters['one'])}"


def test_an_adapter_that_the_server_was_started_with_is_used_by_its_name_alone(
    base: Style, adapters: dict[str, Path]
) -> None:
    with lora_server(base.folder, modules={"trial-1": adapters["one"]}, updating=False) as server:
        assert said(engine_at(server, model="trial-1")) is not None
        engine = OpenAIEngine(Settings(base_url=(server.url,), **QUICK), name="trial-1")
        assert said(engine) == in_process(base, adapters["one"])
        assert not {LOADS, UNLOADS} & set(paths(server))
        assert "trial-1" in server.names


def test_one_that_is_loaded_already_is_used_and_then_unloaded(
    base: Style, adapters: dict[str, Path]
) -> None:
    """As a run leaves it that was killed; its name stands for its content."""
    with lora_server(base.folder) as server:
        assert (
            server.load(
                {"lora_name": name_of(adapters["one"]), "lora_path": str(adapters["one"])}
            ).status
            == 200
        )
        assert said(engine_at(server, adapter=str(adapters["one"]))) == in_process(
            base, adapters["one"]
        )
        assert server.names == {}


def test_the_servers_may_see_the_folder_under_another_path(
    base: Style, adapters: dict[str, Path], tmp_path: Path
) -> None:
    shutil.copytree(adapters["one"], tmp_path / "mounted")
    with lora_server(base.folder) as server:
        there = str(tmp_path / "mounted")
        engine = engine_at(server, adapter=str(adapters["one"]), adapter_on_server=there)
        assert said(engine) == in_process(base, adapters["one"])
        assert server.requests[0].body["lora_path"] == there


def test_a_relative_folder_is_given_to_the_server_as_a_whole_path(
    base: Style, adapters: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(adapters["one"].parent)
    with lora_server(base.folder) as server:
        said(engine_at(server, adapter="adapter"))
        assert server.requests[0].body["lora_path"] == str(adapters["one"])


# restarts, faults, ends


def test_a_server_that_was_restarted_gets_it_again_once(
    base: Style, adapters: dict[str, Path]
) -> None:
    """One of two forgets it in the middle of the work, while several requests are on their way."""
    restarted = []

    class Forgetful(LoraServer):
        def served(self, request: Request) -> Answer:
            if request.path.endswith("completions") and not restarted and len(self.requests) > 3:
                restarted.append(request.number)
                self.restart()
            return super().served(request)

    forgetful = Forgetful(base.folder)
    forgetful.start()
    try:
        with lora_server(base.folder) as other:
            engine = engine_at(forgetful, other, adapter=str(adapters["one"]), concurrency=3)
            asked = [Prompt.of(f"{p.text} ({n})", kind="benign") for p in PROMPTS for n in range(6)]
            costs: list[Any] = []
            found = list(engine.complete(asked, GREEDY, spend=costs.append))
            assert [c.error for c in found] == [None] * len(asked) and restarted
            assert (count(forgetful, LOADS), count(other, LOADS)) == (2, 1)
            lost = [cost.faults for cost in costs if cost.faults]
            assert lost and all(f == {forgetful.url: {"adapter": 1}} for f in lost)
            assert forgetful.names == other.names == {}
    finally:
        forgetful.stop()
    with lora_server(base.folder) as alone:
        again = list(engine_at(alone, adapter=str(adapters["one"])).complete(asked, GREEDY))
    assert {c.prompt_id: c.text for c in found} == {c.prompt_id: c.text for c in again}


def test_a_server_that_is_there_later_gets_it_before_its_first_prompt(
    base: Style, adapters: dict[str, Path]
) -> None:
    """The other one of the fleet is not there at all, and costs no prompt."""
    with lora_server(base.folder) as server:
        engine = engine_at(unused_url(), server, adapter=str(adapters["one"]), max_retries=6)
        assert said(engine) == in_process(base, adapters["one"])


def test_a_server_that_loads_it_and_never_knows_it_is_a_wrong_set_up(
    adapters: dict[str, Path],
) -> None:
    """As a gateway does that hands on each request to another server."""

    def gateway(request: Request) -> Answer:
        if request.path.endswith("lora_adapter"):
            return Answer(payload=b"Success")
        return fails(404, f"The model `{request.body['model']}` does not exist.")

    with serving(gateway) as server:
        with pytest.raises(ValueError, match=r"give the address of each in engine\.base_url"):
            said(engine_at(server, adapter=str(adapters["one"])))
        assert (count(server, LOADS), paths(server)[-1]) == (4, UNLOADS)


def test_it_is_unloaded_after_a_fault(base: Style, adapters: dict[str, Path]) -> None:
    class Refusing(LoraServer):
        def complete(self, body: dict[str, Any]) -> Answer:
            return fails(400, "seed is not supported", param="seed")

    server = Refusing(base.folder)
    server.start()
    try:
        with pytest.raises(ValueError, match="seeded"):
            said(engine_at(server, adapter=str(adapters["one"])))
        assert server.names == {} and paths(server)[-1] == UNLOADS
    finally:
        server.stop()


def test_it_is_unloaded_if_whoever_reads_the_responses_stops(
    base: Style, adapters: dict[str, Path]
) -> None:
    with lora_server(base.folder) as server:
        stream = engine_at(server, adapter=str(adapters["one"])).complete(PROMPTS, GREEDY)
        assert isinstance(next(stream), Completion) and server.names
        stream.close()  # type: ignore[attr-defined]
        assert server.names == {}


def test_a_fault_between_two_responses_unloads_it_at_once(
    base: Style, adapters: dict[str, Path], tmp_path: Path
) -> None:
    """As a full disk may be one. The fault still holds the frames in which the engine works."""

    class Wrong(OpenAIEngine):
        def complete(
            self, prompts: Any, sampling: Sampling, **options: Any
        ) -> Iterator[Completion]:
            return super().complete(prompts, Sampling(max_new_tokens=4), **options)

    with lora_server(base.folder) as server:
        settings = Settings(base_url=(server.url,), adapter=str(adapters["one"]), **QUICK)
        engine = Wrong(settings, name="base")
        with pytest.raises(ValueError, match="other sampling") as fault:
            draw(tmp_path / "completions.jsonl", PROMPTS, GREEDY, lambda: engine)
        assert fault.tb is not None and server.names == {}


def test_a_server_that_does_not_unload_is_named_in_the_log(
    base: Style, adapters: dict[str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    class Keeping(LoraServer):
        def unload(self, body: dict[str, str]) -> Answer:
            return fails(500, "Failed to remove lora adapter from the engine.")

    server = Keeping(base.folder)
    server.start()
    try:
        assert said(engine_at(server, adapter=str(adapters["one"])))
        assert f"{server.url} may keep the adapter {name_of(adapters['one'])}" in caplog.text
    finally:
        server.stop()


# what servers refuse


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (
            {"updating": False},
            r"takes no adapters while it runs\. Start vLLM with --enable-lora --max-lora-rank 8 "
            r"and .*VLLM_ALLOW_RUNTIME_LORA_UPDATING=True.*--lora-modules NAME=.*one/adapter",
        ),
        ({"enabled": False}, r"LoRA is not enabled.*Start vLLM with --enable-lora"),
        ({"enabled": False, "sglang": True}, r"LoRA is not enabled.*SGLang with --enable-lora"),
        (
            {"max_rank": 2},
            r"does not load the adapter .*one/adapter \(rank 4, .*LoRA rank 4 is greater than "
            r"max_lora_rank 2.*Start the server with --max-lora-rank 8 or more",
        ),
        ({"max_rank": 2, "sglang": True}, r"Start the server with --max-lora-rank 8 or more"),
    ],
)
def test_a_server_that_does_not_load_it_is_a_sentence_before_any_prompt(
    base: Style, adapters: dict[str, Path], options: dict[str, Any], says: str
) -> None:
    with lora_server(base.folder, **options) as server:
        with pytest.raises(ValueError, match=says) as found:
            said(engine_at(server, adapter=str(adapters["one"])))
        assert str(found.value).startswith(f"engine.adapter: engine.base_url {server.url}")
        assert not any(path.endswith("completions") for path in paths(server))


def test_sglang_is_not_asked_to_serve_what_it_would_scale_down(
    base: Style, adapters: dict[str, Path], tmp_path: Path
) -> None:
    """It leaves use_rslora out without a word. vLLM knows it."""
    model = base.make_model()
    model.name_or_path = str(base.folder)
    folder = tmp_path / "adapter"
    lora(model, folder, r=4, use_rslora=True)
    with lora_server(base.folder, sglang=True) as server:
        with pytest.raises(ValueError, match=r"has use_rslora, and SGLang .*Serve it with vLLM"):
            said(engine_at(server, adapter=str(folder)))
        assert not any(path.endswith("completions") for path in paths(server))
        assert server.names == {}
        assert said(engine_at(server, adapter=str(adapters["one"])))
    with lora_server(base.folder) as server:
        assert said(engine_at(server, adapter=str(folder))) == in_process(base, folder)


def test_sglang_unloads_what_it_loaded_and_denied(base: Style, adapters: dict[str, Path]) -> None:
    """The fault comes before anybody knows which protocol the server speaks."""

    class Denying(LoraServer):
        def in_sglangs_words(self, answer: Answer) -> Answer:
            return fails(500, "lost the answer") if self.names else super().in_sglangs_words(answer)

    server = Denying(base.folder, sglang=True)
    server.start()
    try:
        with pytest.raises(ValueError, match="lost the answer"):
            said(engine_at(server, adapter=str(adapters["one"])))
        assert paths(server)[-1] == "/unload_lora_adapter" and server.names == {}
    finally:
        server.stop()


def test_requests_that_wait_for_one_load_share_its_failure(adapters: dict[str, Path]) -> None:
    """Else each of them would wait in turn for a server that does not answer."""
    adapter = served_adapter(str(adapters["one"]))

    async def all_at_once(url: str) -> list[object]:
        options: dict[str, Any] = {"timeout_seconds": 60, "max_retries": 0}
        async with make_client(url, NO_KEY, Settings(base_url=(url,)), **options) as client:
            place = AdapterAt(adapter, url, client, "/a", key=NO_KEY, compared=set())
            found = await asyncio.gather(*(place.ready() for _ in range(8)), return_exceptions=True)
            return [*found, *await asyncio.gather(place.ready(), return_exceptions=True)]

    with serving(lambda request: fails(503, "starting")) as server:
        found = asyncio.run(all_at_once(server.url))
        assert [getattr(fault, "status_code", None) for fault in found] == [503] * 9
        assert count(server, LOADS) == 2  # of the eight, and of the one that came later


def test_one_server_of_a_fleet_that_does_not_load_it_stops_and_the_other_unloads(
    base: Style, adapters: dict[str, Path]
) -> None:
    with lora_server(base.folder) as good, lora_server(base.folder, updating=False) as bad:
        with pytest.raises(ValueError, match=f"{bad.url} takes no adapters"):
            said(engine_at(good, bad, adapter=str(adapters["one"])))
        assert count(good, LOADS) == 1 and good.names == {}


def test_a_folder_that_the_server_does_not_see_is_a_sentence(
    base: Style, adapters: dict[str, Path]
) -> None:
    with lora_server(base.folder) as server:
        engine = engine_at(server, adapter=str(adapters["one"]), adapter_on_server="/mnt/elsewhere")
        with pytest.raises(
            ValueError, match=r"reads /mnt/elsewhere from its own disks.*all servers"
        ):
            said(engine)


def test_a_refused_key_is_named_as_one(adapters: dict[str, Path]) -> None:
    says_so = pytest.raises(ValueError, match="does not accept a request without a key")
    with serving(lambda request: fails(401, "wrong key")) as server, says_so:
        said(engine_at(server, adapter=str(adapters["one"])))


def test_a_busy_server_is_asked_again_to_load(base: Style, adapters: dict[str, Path]) -> None:
    class Busy(LoraServer):
        def served(self, request: Request) -> Answer:
            if len(self.requests) <= 2:
                return fails(503, "starting", Retry_After="0.01")
            return super().served(request)

    server = Busy(base.folder)
    server.start()
    try:
        assert said(engine_at(server, adapter=str(adapters["one"]))) == in_process(
            base, adapters["one"]
        )
    finally:
        server.stop()


def test_another_base_than_the_servers_is_said_in_the_log_once(
    base: Style, adapters: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = shutil.copytree(adapters["one"], tmp_path / "adapter")
    config = json.loads((other / "adapter_config.json").read_text())
    (other / "adapter_config.json").write_text(
        json.dumps({**config, "base_model_name_or_path": "Qwen/Qwen3-8B"})
    )
    with lora_server(base.folder, name="tiny") as server, caplog.at_level(logging.WARNING):
        engine = engine_at(server, adapter=str(other))
        said(engine), said(engine)
        words = f"was trained on Qwen/Qwen3-8B, and {server.url} serves tiny, {base.folder}"
        assert caplog.text.count(words) == 1
        caplog.clear()
        said(engine_at(server, adapter=str(adapters["one"])))
        assert "trained on" not in caplog.text


# the folder


def test_the_name_follows_from_config_and_weights_alone(
    adapters: dict[str, Path], tmp_path: Path
) -> None:
    copy = shutil.copytree(adapters["one"], tmp_path / "adapter")
    same = name_of(copy)
    assert same == name_of(adapters["one"]) != name_of(adapters["two"])
    (copy / "README.md").write_text("a card")
    assert name_of(copy) == same
    shutil.copy(adapters["two"] / "adapter_model.safetensors", copy)
    assert name_of(copy) != same
    config = (adapters["one"] / "adapter_config.json").read_text()
    shutil.copytree(adapters["one"], copy, dirs_exist_ok=True)
    (copy / "adapter_config.json").write_text(config.replace('"lora_alpha": 6', '"lora_alpha": 8'))
    assert name_of(copy) != same


def test_a_folder_that_changes_while_it_is_measured_stops_the_run(
    base: Style, adapters: dict[str, Path], tmp_path: Path
) -> None:
    """A server may read it again, so responses of two adapters would stand under one name."""
    copy = shutil.copytree(adapters["one"], tmp_path / "adapter")
    with lora_server(base.folder) as server:
        stream = engine_at(server, adapter=str(copy)).complete(PROMPTS, GREEDY)
        next(stream)
        shutil.copy(adapters["two"] / "adapter_model.safetensors", copy)
        with pytest.raises(ValueError, match="changed while it was measured"):
            list(stream)
        assert server.names == {}


def test_the_new_content_of_a_folder_is_never_served_under_the_old_name(
    base: Style, adapters: dict[str, Path], tmp_path: Path
) -> None:
    copy = shutil.copytree(adapters["one"], tmp_path / "adapter")
    with lora_server(base.folder) as server:
        engine = engine_at(server, adapter=str(copy))
        shutil.copy(adapters["two"] / "adapter_model.safetensors", copy)
        with pytest.raises(ValueError, match="changed while it was measured"):
            said(engine)
        assert not any(path.endswith("completions") for path in paths(server))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (None, "is no adapter: it is no folder.*Give the folder adapter/"),
        ({}, "is no adapter: it holds no adapter_config.json"),
        ({"use_dora": True}, "use_dora is True. Servers serve plain LoRA alone.*merged model"),
        ({"modules_to_save": ["lm_head"]}, r"modules_to_save is \['lm_head'\]"),
        ({"peft_type": "PROMPT_TUNING"}, "peft_type is 'PROMPT_TUNING'"),
        ({"bias": "lora_only"}, "bias is 'lora_only'"),
        ({"alpha_pattern": {"q_proj": 3}}, "alpha_pattern is .*merged model"),
        ({"rank_pattern": {"q_proj": 3}}, "rank_pattern is .*with one rank.*merged model"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa'"),
        ({"r": None}, "its rank r is None"),
    ],
)
def test_a_folder_that_no_server_can_serve_is_a_sentence(
    adapters: dict[str, Path], tmp_path: Path, changes: dict[str, Any] | None, says: str
) -> None:
    folder = tmp_path / "adapter"
    if changes is not None:
        folder.mkdir()
    if changes:
        shutil.copytree(adapters["one"], folder, dirs_exist_ok=True)
        config = json.loads((folder / "adapter_config.json").read_text())
        (folder / "adapter_config.json").write_text(json.dumps({**config, **changes}))
    with pytest.raises(ValueError, match=says):
        engine_at("http://localhost:1/v1", adapter=str(folder))


def test_a_config_of_another_kind_of_adapter_has_no_rank(
    adapters: dict[str, Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(adapters["one"], tmp_path / "adapter")
    (folder / "adapter_config.json").write_text('{"peft_type": "PROMPT_TUNING"}')
    with pytest.raises(
        ValueError, match=r"peft_type is 'PROMPT_TUNING'\. Servers serve plain LoRA"
    ):
        served_adapter(str(folder))


def test_the_greatest_rank_of_a_server_is_one_that_it_knows(base: Style, tmp_path: Path) -> None:
    lora(base.make_model(), tmp_path, r=33)
    found = served_adapter(str(tmp_path))
    assert (found.rank, found.max_rank) == (33, 64)


@pytest.mark.parametrize(
    ("trained", "served", "same"),
    [
        ("Qwen/Qwen3-8B", ["Qwen/Qwen3-8B"], True),
        ("Qwen/Qwen3-8B", ["qwen", "/data/models/Qwen3-8B"], True),
        ("/data/qwen3-8b", ["Qwen/Qwen3-8B"], True),
        ("~/hub/models--Qwen--Qwen3-8B/snapshots/1", ["Qwen/Qwen3-8B"], True),
        ("runs/sft-1/model", ["/home/me/runs/sft-1/model"], True),
        ("runs/sft-1/model", ["runs/sft-2/model"], False),
        ("Qwen/Qwen3-8B", ["Qwen/Qwen3-4B"], False),
        ("", ["Qwen/Qwen3-4B"], True),
        ("Qwen/Qwen3-8B", [], True),
    ],
)
def test_a_base_is_known_by_its_name(trained: str, served: list[str], same: bool) -> None:
    assert is_base(trained, served) is same


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"adapter": "a"}, "adapter needs servers of your own"),
        ({"adapter_on_server": "/a", "base_url": "http://a/v1"}, "Give adapter too"),
    ],
)
def test_keys_that_do_not_go_together_are_a_sentence(given: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Settings(**given)


# runs

ASKED = 12
"""Prompts of `recipe`: four of each kind."""


def recipe(base: Style, *servers: Any, **engine: Any) -> dict[str, Any]:
    """An evaluation on servers."""
    urls = [server.url for server in servers]
    return {
        "task": "evaluate",
        "model": {"model_name_or_path": str(base.folder)},
        "engine": {"name": "openai", "base_url": urls, **QUICK, **engine},
        "data": {"sets": ["starter"], "split": "test", "max_prompts_per_kind": 4},
        "generation": {"max_new_tokens": 8},
    }


def checked(values: dict[str, Any]) -> Any:
    """The recipe's body."""
    return check_body(values, "recipe")


def test_a_run_of_the_base_and_runs_of_adapters_never_meet(
    base: Style, adapters: dict[str, Path], tmp_path: Path
) -> None:
    """In one folder, resumed with another adapter, with none, and with the folder's new content."""
    trial = Path(shutil.copytree(adapters["one"].parent, tmp_path / "trial")) / "adapter"
    (trial.parent / "status.json").write_text('{"state": "done", "key": "1a2b3c4d"}')
    with lora_server(base.folder) as server:
        path = tmp_path / "evaluate.yaml"
        folder = f"--run_dir={tmp_path / 'run'}"

        def run(**engine: Any) -> Any:
            path.write_text(yaml.safe_dump(recipe(base, server, **engine)))
            return CliRunner().invoke(app, ["run", str(path), folder]).exception

        assert run(adapter=str(trial)) is None
        before = len(server.requests)
        assert run(adapter=str(trial)) is None
        assert len(server.requests) == before  # it is done
        for engine in ({}, {"adapter": str(adapters["two"])}):
            assert "holds a run of another recipe" in str(run(**engine))
        shutil.copy(adapters["two"] / "adapter_model.safetensors", trial)
        assert "of another recipe: the content of engine.adapter." in str(run(adapter=str(trial)))
        assert len(server.requests) == before
    outcomes = read_jsonl(tmp_path / "run" / "outcomes.jsonl", Outcome)
    assert {o.completion.model for o in outcomes} == {f"{base.folder}+{name_of(adapters['one'])}"}
    notes = json.loads((tmp_path / "run" / "metrics.json").read_text())["measured"]["notes"]
    assert notes[0].startswith(f"Measured was {base.folder} with the adapter {trial} (rank 4, ")


def test_the_key_counts_the_content_and_neither_servers_nor_their_paths(
    adapters: dict[str, Path],
) -> None:
    one = Settings(base_url=("http://a/v1",), adapter=str(adapters["one"]))
    assert inputs(one) == {"adapter": name_of(adapters["one"]).rpartition("-")[2]}
    assert inputs(Settings(base_url=("http://a/v1",), adapter="@dpo.adapter")) == {}
    assert inputs(Settings()) == {}
    values: dict[str, Any] = {"task": "evaluate", "model": {"model_name_or_path": "base"}}
    engine = {"name": "openai", "base_url": "http://a/v1", "adapter": str(adapters["one"])}
    found = stage_inputs(checked({**values, "engine": engine}))
    assert found["engine.adapter"] == inputs(one)["adapter"]


def test_two_trials_are_measured_alike(adapters: dict[str, Path], tmp_path: Path) -> None:
    """The adapter, like a name at a server, says what is measured and not how."""
    for name, engine in {
        "base": {"name": "openai", "base_url": ["http://a/v1"]},
        "one": {"name": "openai", "base_url": ["http://a/v1"], "adapter": str(adapters["one"])},
        "named": {"name": "openai", "base_url": ["http://a/v1"], "model": "trial-1"},
    }.items():
        (tmp_path / name).mkdir()
        values = {"task": "evaluate", "engine": engine, "chat": {"system_prompt": None}}
        (tmp_path / name / "recipe.yaml").write_text(yaml.safe_dump(values))
    found = [measured_how(tmp_path / name, []) for name in ("base", "one", "named")]
    assert found[0] == found[1] == found[2] != {}


def test_check_says_rank_name_and_what_the_servers_say(
    base: Style, adapters: dict[str, Path], tmp_path: Path
) -> None:
    path = str(adapters["one"])
    with lora_server(base.folder) as a, lora_server(base.folder, updating=False) as b:
        line = check_stage(checked(recipe(base, a, adapter=path)))
        assert f"the adapter {path} (rank 4, trained on {base.folder})" in line
        assert f"served as {name_of(adapters['one'])} (--max-lora-rank 8)" in line
        assert line.endswith(f"{a.url} takes adapters") and a.names == {}
        with pytest.raises(ValueError, match=f"{b.url} takes no adapters while it runs"):
            check_stage(checked(recipe(base, b, adapter=path)))
        values = recipe(base, a, adapter=path)
        values["engine"]["base_url"] = [unused_url()]
        assert check_stage(checked(values)).endswith("cannot be asked now")
        assert not any(p.endswith("completions") for server in (a, b) for p in paths(server))
    with pytest.raises(ValueError, match="is no adapter: it is no folder"):
        check_stage(checked(recipe(base, a, adapter=str(tmp_path / "none"))))
    later = check_stage(checked(recipe(base, a, adapter="@dpo.adapter")))
    assert later.endswith("the adapter @dpo.adapter, which an earlier stage makes")


def test_a_student_or_a_teacher_may_be_an_adapter_that_an_earlier_stage_makes(
    adapters: dict[str, Path], tmp_path: Path
) -> None:
    def curation(adapter: str) -> Any:
        engine = {"name": "openai", "base_url": "http://a/v1", "adapter": adapter, **QUICK}
        student = {"model": {"model_name_or_path": "base"}, "engine": engine}
        return checked({"task": "curate", **student, "chosen": {"model": "base", "engine": engine}})

    check_curation(curation("@dpo.adapter"))
    check_curation(curation(str(adapters["one"])))
    with pytest.raises(ValueError, match="is no adapter: it is no folder"):
        check_curation(curation(str(tmp_path / "none")))


def test_check_says_that_the_server_holds_another_model(
    base: Style, adapters: dict[str, Path], styles: dict[str, Style]
) -> None:
    with lora_server(styles["qwen"].folder, name="qwen") as server:
        line = check_stage(checked(recipe(base, server, adapter=str(adapters["one"]))))
    assert f"was trained on {base.folder}, and {server.url} serves qwen, " in line


def test_check_does_not_need_a_key(
    base: Style, adapters: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving() as server:
        values = recipe(base, server, adapter=str(adapters["one"]), api_key_env="NO_SUCH_KEY")
        assert check_stage(checked(values)).endswith("there is no key here")
        assert server.requests == []


@pytest.fixture
def slow_server(base: Style) -> Iterator[LoraServer]:
    with lora_server(base.folder, slow=0.3) as server:
        yield server


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_run_that_is_stopped_unloads_it_and_one_that_goes_on_loads_it_again(
    base: Style,
    adapters: dict[str, Path],
    slow_server: LoraServer,
    tmp_path: Path,
    sent: signal.Signals,
) -> None:
    """A SIGKILL leaves it loaded; the run that goes on then uses it and unloads it."""
    values = recipe(base, slow_server, adapter=str(adapters["one"]), concurrency=1)
    path, folder = tmp_path / "evaluate.yaml", tmp_path / "run"
    path.write_text(yaml.safe_dump({**values, "run_dir": str(folder)}))
    command = [sys.executable, "-m", "overrefusal_po", str(path)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as child:
        file = folder / "completions.jsonl"
        while child.poll() is None and not (file.is_file() and file.read_bytes().count(b"\n") > 1):
            time.sleep(0.01)
        assert slow_server.names and child.poll() is None
        child.send_signal(sent)
    name = name_of(adapters["one"])
    if sent == signal.SIGKILL:
        assert set(slow_server.names) == {name}
    else:
        assert child.returncode == 130 and slow_server.names == {}
    there = file.read_bytes().count(b"\n")
    assert subprocess.run(command, stdout=subprocess.DEVNULL).returncode == 0
    assert slow_server.names == {} and count(slow_server, LOADS) == 2
    chats = [r for r in slow_server.requests if r.path.endswith("completions")]
    assert {r.body["model"] for r in chats} == {name}
    assert 2 <= there < ASKED == file.read_bytes().count(b"\n")
    assert len(chats) <= ASKED + 1  # none is asked twice but the one that was on its way


# the docs


def shown_commands() -> list[list[str]]:
    """The commands of the section "A sweep's trials on one server" of the FAQ, as words."""
    section = (
        (ROOT / "docs" / "faq.md").read_text().split("\n## A sweep's trials on one server\n")[1]
    )
    block = section.split("```\n")[1].replace("\\\n", " ")
    return [shlex.split(line) for line in block.splitlines()]


@pytest.mark.slow
def test_the_commands_of_the_faq_measure_the_base_and_two_trials_and_compare_them(
    base: Style, adapters: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As they stand there, but for the model, the server's port, and fewer and shorter texts."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / "recipes", tmp_path / "recipes")
    for name, key in {"one": "1a2b3c4d", "two": "5e6f7a8b"}.items():
        shutil.copytree(adapters[name], tmp_path / f"runs/dpo-{key}/adapter")
    commands = shown_commands()
    assert [words[0] for words in commands[1:]] == ["overrefusal-po"] * 4
    served = commands[0]
    assert served[:3] == ["VLLM_ALLOW_RUNTIME_LORA_UPDATING=True", "vllm", "serve"]
    rank = int(served[served.index("--max-lora-rank") + 1])
    smaller = ["--data.max_prompts_per_kind=4", "--generation.max_new_tokens=8"]
    with lora_server(base.folder, name=str(base.folder), max_rank=rank) as server:
        for words in commands[1:]:
            changed = [
                word.replace(served[3], str(base.folder)).replace(
                    "http://localhost:8000/v1", server.url
                )
                for word in words[1:]
            ]
            more = smaller if words[1].endswith(".yaml") else []
            with pytest.raises(SystemExit) as end:
                main([*changed, *more])
            assert not end.value.code
        assert server.names == {} and count(server, LOADS) == count(server, UNLOADS) == 2
    found = {
        name: read_jsonl(tmp_path / f"runs/measured/{name}/outcomes.jsonl", Outcome)
        for name in ("base", "low", "high")
    }
    texts = {name: [o.completion.text for o in rows] for name, rows in found.items()}
    assert texts["base"] != texts["low"] != texts["high"] != texts["base"]
    page = (tmp_path / "compare.html").read_text()
    assert "low" in page and "NOT MEASURED ALIKE" not in page
