"""Completions files: resume after a kill, failures, ledger and tally, the in-process engine's
batches, shards."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer
from fault_proxy import faulty, share
from openai_server import Answer, Request, Server, broken_off, fails, raw, says, serving

from overrefusal_po.engines import PLUG_NAMES, check_engine_made, check_engine_plug
from overrefusal_po.engines._openai_session import BudgetSpent
from overrefusal_po.engines.openai import OpenAIEngine, Settings
from overrefusal_po.engines.transformers import TransformersEngine
from overrefusal_po.plugins import make_judge, names, plug
from overrefusal_po.recipe.sections import Chat, Generation
from overrefusal_po.recipe.shard import Shard
from overrefusal_po.records import Completion, Prompt, Sampling, Verdict, read_jsonl
from overrefusal_po.run.complete import complete, draw, engine_for
from overrefusal_po.run.folder import Run
from overrefusal_po.run.judged import fresh_verdicts, resumable_verdicts
from overrefusal_po.run.keys import keyed, run_key
from overrefusal_po.run.ledger import sum_ledger
from overrefusal_po.run.ranks import speaking_once
from overrefusal_po.run.shards import (
    check_nothing_there,
    completions_files,
    put_together,
    shard_folders,
    shard_prompts,
)

SAMPLING = Sampling(temperature=0.7, seed=5)


def prompts_to(count: int) -> list[Prompt]:
    """Prompts that differ by a number."""
    return [Prompt.of(f"How do I kill process {n}?", kind="benign") for n in range(count)]


def at(url: str, **settings: Any) -> Callable[[], OpenAIEngine]:
    """A maker of engines for a loopback server."""
    options: dict[str, Any] = {
        "api_key_env": None,
        "backoff_seconds": 0.005,
        "concurrency": 4,
        **settings,
    }
    return lambda: OpenAIEngine(Settings(base_url=(url,), **options), name="m")


def echo(request: Request) -> Answer:
    """An answer that follows from prompt and seed alone."""
    if "process 3?" in request.text:
        return fails(400, "content policy")
    return says(f"{request.text} {request.body['seed']}")


def contents(path: Path) -> list[str]:
    """The rows of a file, sorted."""
    return sorted(path.read_text().splitlines())


def no_engine() -> Any:
    """A maker of an engine, for work where nothing is missing."""
    raise AssertionError("nothing is missing")


# one file and those beside it


def test_completions_come_in_the_prompts_order_and_a_second_call_asks_for_none(
    tmp_path: Path,
) -> None:
    path, asked = tmp_path / "completions.jsonl", prompts_to(10)
    with serving(echo) as server:
        first = complete(path, asked, SAMPLING, at(server.url), "x", samples=2)
    again = complete(path, asked, SAMPLING, no_engine, "x", samples=2)
    assert [(c.prompt_id, c.sample) for c in first] == [(p.id, n) for p in asked for n in range(2)]
    assert first == again and len(server.requests) == 20
    assert [c.finish_reason for c in first] == ["stop"] * 6 + ["error"] * 2 + ["stop"] * 12


def test_failures_are_in_a_file_beside_with_their_reason_until_somebody_deletes_it(
    tmp_path: Path,
) -> None:
    path, asked = tmp_path / "answers.jsonl", prompts_to(5)
    with serving(echo) as server:
        tally = draw(path, asked, SAMPLING, at(server.url))
    assert (tally.completed, tally.failed) == (4, 1)
    ((reason, count),) = tally.reasons.items()
    assert count == 1 and "status 400" in reason and "content policy" in reason
    (failed,) = read_jsonl(tmp_path / "answers.failed.jsonl", Completion)
    assert failed.prompt_id == asked[3].id and failed.text == "" and failed.error == reason
    assert len(read_jsonl(path, Completion)) == 4
    assert json.loads((tmp_path / "answers.tally.json").read_text())["failed"] == 1
    (tmp_path / "answers.failed.jsonl").unlink()
    with serving(lambda request: says("fine")) as server:
        tally = draw(path, asked, SAMPLING, at(server.url))
    assert (tally.completed, tally.failed, len(server.requests)) == (5, 0, 1)


def test_another_sampling_is_drawn_beside_the_first(tmp_path: Path) -> None:
    path, asked = tmp_path / "c.jsonl", prompts_to(3)
    with serving(echo) as server:
        one = complete(path, asked, SAMPLING, at(server.url), "x")
        two = complete(path, asked, SAMPLING.model_copy(update={"seed": 6}), at(server.url), "x")
    assert [c.text for c in one] != [c.text for c in two] and len(server.requests) == 6


def test_a_prompt_that_is_given_twice_is_asked_once(tmp_path: Path) -> None:
    asked = prompts_to(2)
    with serving(echo) as server:
        found = complete(tmp_path / "c.jsonl", [*asked, *asked], SAMPLING, at(server.url), "x")
    assert len(server.requests) == 2 and len(found) == 4 and found[:2] == found[2:]


def test_progress_counts_what_is_missing_of_these_prompts(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Rounds of a search share a file: the completions of earlier rounds are no progress."""
    caplog.set_level("INFO")
    prompts, path = prompts_to(3), tmp_path / "completions.jsonl"
    with serving(lambda request: says(request.text)) as server:
        complete(path, prompts[:2], SAMPLING, at(server.url), "first")
        complete(path, prompts[1:], SAMPLING, at(server.url), "second")
    assert "first: 2 of 2" in caplog.messages and "second: 1 of 1" in caplog.messages


def test_prompts_may_be_a_stream(tmp_path: Path) -> None:
    with serving(echo) as server:
        tally = draw(tmp_path / "c.jsonl", iter(prompts_to(7)), SAMPLING, at(server.url))
        again = draw(tmp_path / "c.jsonl", iter(prompts_to(9)), SAMPLING, at(server.url))
    assert (tally.completed, tally.failed, again.completed, len(server.requests)) == (6, 1, 8, 9)


@pytest.mark.slow
def test_the_ledger_adds_up_under_faults(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    with serving(echo) as server, faulty(server.url, share(0.3)) as proxy:
        tally = draw(path, prompts_to(40), SAMPLING, at(proxy.url, max_retries=20), samples=2)
    ledger = tally.ledger
    assert ledger == sum_ledger(tmp_path / "c.ledger.jsonl")
    assert (tally.completed, tally.failed, ledger["rows"], ledger["answers"]) == (78, 2, 80, 78)
    assert ledger["requests"] == proxy.requests == ledger["answers"] + ledger["faults"]
    assert ledger["tokens"] == ledger["prompt_tokens"] + ledger["completion_tokens"]
    assert ledger["completion_tokens"] == sum(len(c.text) for c in read_jsonl(path, Completion))
    place = ledger["endpoints"][proxy.url]
    assert place["faults"]["400"] == 2 and sum(place["faults"].values()) == ledger["faults"]


def test_a_budget_counts_what_earlier_runs_and_other_files_of_the_folder_spent(
    tmp_path: Path,
) -> None:
    asked = prompts_to(20)
    with serving(lambda request: says("x" * 10)) as server:
        each = len(asked[0].text) + 10
        draw(tmp_path / "one.jsonl", asked[:10], SAMPLING, at(server.url))
        with pytest.raises(BudgetSpent):
            draw(
                tmp_path / "two.jsonl",
                asked,
                SAMPLING,
                at(server.url, token_budget=15 * each, concurrency=1),
            )
        with pytest.raises(BudgetSpent):
            draw(tmp_path / "two.jsonl", asked, SAMPLING, at(server.url, token_budget=15 * each))
        assert 15 <= len(server.requests) <= 16
        assert draw(tmp_path / "two.jsonl", asked, SAMPLING, at(server.url)).completed == 20
    assert len(server.requests) == 30


def test_a_spent_budget_ends_the_run_with_code_1(tmp_path: Path) -> None:
    with (
        serving(echo) as server,
        pytest.raises(BudgetSpent),
        Run.open(tmp_path, {"task": "x"}, {}) as run,
    ):
        draw(run.path / "c.jsonl", prompts_to(5), SAMPLING, at(server.url, token_budget=1))
    # with 130 a job array would be queued again, and again
    assert (run.status()["state"], run.status()["exit_code"]) == ("failed", 1)
    assert "token_budget" in run.status()["message"]


def test_a_spent_budget_is_said_and_not_taken_for_an_interrupt(
    capsys: pytest.CaptureFixture[str],
) -> None:
    app = typer.Typer()

    @app.command()
    def spend() -> None:
        raise BudgetSpent("engine.token_budget: 5 of 5 tokens are spent. Raise it")

    with pytest.raises(SystemExit) as end, speaking_once():
        app([])
    said = capsys.readouterr().err
    assert end.value.code == 1 and "overrefusal-po: engine.token_budget: 5 of 5" in said
    assert "the same command goes on" not in said


def test_no_judge_takes_a_failure_for_an_empty_answer(tmp_path: Path) -> None:
    asked = prompts_to(5)
    with serving(echo) as server:
        found = complete(tmp_path / "c.jsonl", asked, SAMPLING, at(server.url), "x")
    verdicts = fresh_verdicts(make_judge("refusal"), asked, found)
    assert [v.completion_id for v in verdicts] == [c.id for c in found]
    assert [v.unscored is None for v in verdicts] == [True, True, True, False, True]
    assert (
        "no completion: content filter: the server refuses this item with status 400"
        in str(verdicts[3].unscored)
        and not verdicts[3].degenerate
    )


# verdicts of slow judges


def judge_at(server: Server, **settings: Any) -> Any:
    """A judge behind a server, one request at a time: 16 completions are a chunk."""
    options = {"api_key_env": None, "concurrency": 1, "max_retries": 0, **settings}
    return make_judge({"name": "llm", "model": "judge", "base_url": server.url, **options})


def answered(count: int) -> tuple[list[Prompt], list[Completion]]:
    """Prompts and a response to each."""
    asked = prompts_to(count)
    options: dict[str, Any] = {"model": "m", "engine": "tests", "sampling": SAMPLING}
    return asked, [
        Completion(id=f"c{n}", prompt_id=p.id, text=f"Word {n}.", **options)
        for n, p in enumerate(asked)
    ]


def by_word(request: Request) -> Answer:
    """A verdict that follows from the response; none that can be read on the second one."""
    if "Word 1." in request.text:
        return says("It depends.")
    return says("Verdict: full" if "Word 2." in request.text else "Verdict: none")


@pytest.mark.slow
def test_a_slow_judge_is_asked_once_and_its_verdicts_come_in_the_completions_order(
    tmp_path: Path,
) -> None:
    path, (asked, said) = tmp_path / "verdicts.jsonl", answered(20)
    said[3] = said[3].model_copy(update={"error": "filtered", "text": "", "finish_reason": "error"})
    with serving(by_word) as server:
        first = resumable_verdicts(path, judge_at(server), asked, said)
        assert (
            first == fresh_verdicts(judge_at(server), asked, said)
            and len(server.requests) == 2 * 19
        )
        again = resumable_verdicts(
            path, judge_at(server), asked[::-1] + asked[:2], said[::-1] + said[:2]
        )
        assert again == first[::-1] + first[:2] and len(server.requests) == 2 * 19
        resumable_verdicts(
            path, judge_at(server, prompt="derta"), asked, said
        )  # another judge has not said a thing
        assert len(server.requests) == 3 * 19
    assert [v.refusal for v in first[:5]] == ["none", None, "full", None, "none"]
    assert (
        "no verdict line" in str(first[1].unscored)
        and first[3].unscored == "no completion: filtered"
    )
    assert len(read_jsonl(path, Verdict)) == 2 * 19


@pytest.mark.slow
def test_a_judge_that_was_stopped_goes_on_behind_its_last_whole_chunk(tmp_path: Path) -> None:
    path, (asked, said) = tmp_path / "verdicts.jsonl", answered(40)
    with serving(lambda r: fails(401, "expired") if r.number == 20 else by_word(r)) as server:
        with pytest.raises(ValueError, match="expired"):
            resumable_verdicts(path, judge_at(server), asked, said)
        assert (len(read_jsonl(path, Verdict)), len(server.requests)) == (16, 21)
        path.write_text(path.read_text()[:-9])  # what a kill in the middle of a row leaves
        found = resumable_verdicts(path, judge_at(server), asked, said)
        assert len(server.requests) == 21 + 25
        assert found == fresh_verdicts(judge_at(server), asked, said) == read_jsonl(path, Verdict)


@pytest.mark.parametrize(
    "fault", [fails(403, "flagged"), fails(400, "too long", param="max_tokens")]
)
def test_a_judge_that_goes_on_takes_a_fault_of_its_first_item_for_the_items_own(
    tmp_path: Path, fault: Answer
) -> None:
    path, (asked, said) = tmp_path / "verdicts.jsonl", answered(18)
    with serving(lambda r: fault if "Word 16." in r.text else by_word(r)) as server:
        resumable_verdicts(path, judge_at(server), asked[:16], said[:16])
        found = resumable_verdicts(path, judge_at(server), asked, said)
    assert "refuses this item" in str(found[16].unscored) and found[17].refusal == "none"


@pytest.mark.parametrize(
    ("fault", "again"),
    [
        (fails(503, "busy"), True),
        (raw(b"{"), True),
        (broken_off(), True),
        (fails(400, "flagged"), False),
    ],
)
def test_what_may_pass_is_asked_again_and_what_stays_wrong_is_not(
    tmp_path: Path, fault: Answer, again: bool
) -> None:
    path, (asked, said) = tmp_path / "verdicts.jsonl", answered(5)
    with serving(lambda r: fault if "Word 4." in r.text and r.number < 5 else by_word(r)) as server:
        first = resumable_verdicts(path, judge_at(server), asked, said)
        second = resumable_verdicts(path, judge_at(server), asked, said)
    assert first[4].unscored and (second[4].refusal == "none") == again
    assert first[:4] == second[:4] and len(server.requests) == 5 + again
    assert sorted(v.completion_id for v in read_jsonl(path, Verdict)) == [c.id for c in said]


def test_a_fast_judge_needs_no_file(tmp_path: Path) -> None:
    asked, said = answered(3)
    assert resumable_verdicts(
        tmp_path / "v.jsonl", make_judge("refusal"), asked, said
    ) == fresh_verdicts(make_judge("refusal"), asked, said)
    assert not (tmp_path / "v.jsonl").exists()


# kills


KILLED = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from test_generate import at, draw, prompts_to, SAMPLING
draw(Path(sys.argv[1]), prompts_to(60), SAMPLING, at(sys.argv[2]), samples=2)
"""


def wait_for(condition: Callable[[], bool]) -> None:
    """Waits until `condition` holds."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def killed_draw(path: Path, server: Server, rows: int) -> None:
    """A process that draws into `path` and is killed when `rows` rows are there."""
    command = [sys.executable, "-c", KILLED, str(path), server.url, str(Path(__file__).parent)]
    with subprocess.Popen(
        command, stderr=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"}
    ) as process:
        wait_for(lambda: path.exists() and path.read_bytes().count(b"\n") >= rows)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL


@pytest.mark.slow
def test_after_a_kill_nothing_is_lost_but_what_was_on_its_way_and_nothing_is_asked_twice(
    tmp_path: Path,
) -> None:
    path, whole = tmp_path / "c.jsonl", tmp_path / "whole.jsonl"
    with serving(lambda request: echo(request)._replace(delay_seconds=0.01)) as server:
        killed_draw(path, server, 30)
        with path.open("a") as file:
            file.write('{"id": "torn')
        there = path.read_bytes().count(b"\n")
        failed = path.with_name("c.failed.jsonl")
        there += failed.read_bytes().count(b"\n") if failed.exists() else 0
        before = len(server.requests)
        assert before - there <= 2 * 4  # on their way, and come but not yet written
        tally = draw(path, prompts_to(60), SAMPLING, at(server.url), samples=2)
        assert len(server.requests) == before + 120 - there
        draw(whole, prompts_to(60), SAMPLING, at(server.url), samples=2)
    assert (tally.completed, tally.failed) == (118, 2)
    assert contents(path) == contents(whole)
    assert contents(failed) == contents(tmp_path / "whole.failed.jsonl")


# the in-process engine


def in_process(style: Any, batch_size: int = 4) -> TransformersEngine:
    """A tiny model in an engine on the CPU."""
    return TransformersEngine(
        style.make_model(), style.template, name="tiny", batch_size=batch_size, device="cpu"
    )


def test_a_run_that_goes_on_draws_what_a_run_that_never_stopped_draws(
    styles: dict[str, Any],
) -> None:
    made, asked = in_process(styles["qwen"]), prompts_to(11)
    sampling = Sampling(max_new_tokens=6, temperature=1.0)
    whole = {(c.prompt_id, c.sample): c for c in made.complete(asked, sampling, samples=2)}
    had = set(sorted(whole)[::3])
    rest = {(c.prompt_id, c.sample): c for c in made.complete(asked, sampling, samples=2, had=had)}
    assert len(whole) == 22 and rest == {key: c for key, c in whole.items() if key not in had}
    assert sum(whole[p.id, 0].text != whole[p.id, 1].text for p in asked) > 5


@pytest.mark.slow
def test_continuous_batching_says_greedily_what_batches_say(styles: dict[str, Any]) -> None:
    style, asked = styles["qwen"], prompts_to(7)
    model = style.make_model()
    if not hasattr(model, "continuous_batching_context_manager"):
        pytest.skip("this version of transformers has none")
    sampling = Sampling(max_new_tokens=6)
    options: dict[str, Any] = {"name": "tiny", "batch_size": 3, "device": "cpu"}
    batches = TransformersEngine(model, style.template, **options)
    one_by_one = TransformersEngine(model, style.template, continuous_batching=True, **options)
    wanted = {c.prompt_id: c for c in batches.complete(asked, sampling)}
    found = {c.prompt_id: c for c in one_by_one.complete(asked, sampling, had={(asked[0].id, 0)})}
    assert found == {p.id: wanted[p.id] for p in asked[1:]}


def test_batches_that_are_there_are_not_made_again(styles: dict[str, Any]) -> None:
    made, asked = in_process(styles["qwen"], batch_size=2), prompts_to(4)
    decode = made.template.tokenizer.decode
    prefills: list[list[str]] = []

    def see(model: Any, args: Any, inputs: dict[str, Any]) -> None:
        if inputs["input_ids"].shape[1] > 1:  # later steps read one token
            prefills.append([decode(row) for row in inputs["input_ids"]])

    made.model.register_forward_pre_hook(see, with_kwargs=True)
    had = {(p.id, 0) for p in asked[:3]}
    (only,) = made.complete(asked, Sampling(max_new_tokens=2), had=had)
    assert only.prompt_id == asked[3].id
    (batch,) = prefills
    assert all(p.text in text for p, text in zip(asked[2:], batch, strict=True))


def test_a_recipe_names_the_engine_and_its_settings(styles: dict[str, Any], tmp_path: Path) -> None:
    style = styles["qwen"]
    style.make_model().save_pretrained(tmp_path)
    style.tokenizer.save_pretrained(tmp_path)
    section = {"model_name_or_path": str(tmp_path), "dtype": "float32"}
    found = engine_for(
        section,
        style.template,
        Generation(batch_size=3),
        engine={"name": "transformers", "device": "cpu"},
    )
    assert isinstance(found, TransformersEngine) and (found.batch_size, found.device) == (3, "cpu")
    spec = {"name": "openai", "base_url": "http://127.0.0.1:1/v1", "api_key_env": None}
    over_http = engine_for(section, None, Generation(), engine=spec, chat=Chat(system_prompt="S"))
    assert isinstance(over_http, OpenAIEngine) and (over_http.name, over_http.system_prompt) == (
        str(tmp_path),
        "S",
    )
    with pytest.raises(ValueError, match=r"openia is no engine that is known. Did you mean openai"):
        engine_for(section, None, Generation(), engine="openia")


class Nameless:
    """An engine without a name."""

    def complete(self, prompts: list[Prompt], sampling: Sampling) -> Iterator[Completion]:
        return iter(())


@pytest.mark.parametrize("name", names("engines"))
def test_every_engine_file_defines_what_an_engine_file_must(name: str) -> None:
    check_engine_plug(plug("engines", name))


@pytest.mark.parametrize("missing", PLUG_NAMES)
def test_an_engine_file_that_lacks_something_is_refused_by_name(missing: str) -> None:
    module = ModuleType("my_engine")
    for name in set(PLUG_NAMES) - {missing}:
        setattr(module, name, Settings)
    with pytest.raises(ValueError, match=f"'my_engine' has no {missing}"):
        check_engine_plug(module)


def test_what_is_no_engine_is_refused_when_it_is_made() -> None:
    module = ModuleType("my_engine")
    with pytest.raises(ValueError, match=r"returned a Nameless without name"):
        check_engine_made(Nameless(), module)
    check_engine_made(at("http://127.0.0.1:1/v1")(), module)


# what a run is known by


def test_where_and_how_fast_an_engine_works_does_not_make_another_run() -> None:
    spec = {
        "name": "openai",
        "model": "m",
        "base_url": ["http://a/v1"],
        "token_budget": 5,
        "extra_body": {"top_k": 3},
    }
    recipe: dict[str, Any] = {
        "task": "curate",
        "engine": spec,
        "chosen": {"model": "t", "engine": spec},
        "shard": None,
    }
    moved = {
        **spec,
        "base_url": ["http://b/v1", "http://c/v1"],
        "token_budget": 9,
        "concurrency": 64,
    }
    key = run_key(recipe, {})
    assert (
        run_key(
            {**recipe, "engine": moved, "chosen": {"model": "t", "engine": moved}, "shard": "1/2"},
            {},
        )
        == key
    )
    for other in (
        {**spec, "model": "n"},
        {**spec, "extra_body": {"top_k": 4}},
        {**spec, "seeded": False},
    ):
        assert run_key({**recipe, "chosen": {"model": "t", "engine": other}}, {}) != key
    assert keyed({"trainer": {"shard": 1, "max_retries": 2}}) == {
        "trainer": {"shard": 1, "max_retries": 2}
    }


# shards


def sharded(folder: Path, count: int, asked: list[Prompt], server: Server) -> None:
    """Makes all shards' folders, as `count` processes would leave them."""
    for number in range(1, count + 1):
        own = shard_prompts(asked, f"{number}/{count}")
        place = folder / Shard(number, count).folder
        place.mkdir()
        draw(place / "c.jsonl", own, SAMPLING, at(server.url), samples=2)


def merge_shards(folder: Path) -> dict[str, int]:
    """What `merge_folder` does with completions that no stage has made."""
    shards = shard_folders(folder)
    names = completions_files(folder, shards)
    check_nothing_there(folder, names)
    return put_together(folder, shards, names)


@pytest.mark.slow
def test_shards_put_together_are_what_one_run_would_have_drawn(tmp_path: Path) -> None:
    asked = prompts_to(30)
    with serving(echo) as server:
        sharded(tmp_path, 3, asked, server)
        (tmp_path / "whole").mkdir()
        whole = draw(tmp_path / "whole" / "c.jsonl", asked, SAMPLING, at(server.url), samples=2)
    assert merge_shards(tmp_path) == {"c.jsonl": 58}
    for name in ("c.jsonl", "c.failed.jsonl"):
        assert contents(tmp_path / name) == contents(tmp_path / "whole" / name)
    merged = draw(tmp_path / "c.jsonl", asked, SAMPLING, no_engine, samples=2)
    assert (merged.completed, merged.failed) == (58, 2)
    assert (
        merged.ledger["tokens"] == whole.ledger["tokens"]
        and merged.ledger["requests"] == whole.ledger["requests"]
    )
    with pytest.raises(ValueError, match="is there already"):
        merge_shards(tmp_path)


def test_every_prompt_is_in_one_shard_and_an_attack_stays_with_its_prompt() -> None:
    asked = prompts_to(200)
    shards = [shard_prompts(asked, f"{n}/4") for n in range(1, 5)]
    sizes = [len(shard) for shard in shards]
    assert sum(sizes) == len({p.id for shard in shards for p in shard}) == 200 and min(sizes) > 25
    for shard in shards:
        attacked = [p.model_copy(update={"id": f"{p.id}!", "original_id": p.id}) for p in shard]
        inside = [sum(len(shard_prompts(attacked, f"{n}/4")) for n in range(1, 5)), len(shard)]
        assert inside[0] == inside[1] and attacked in [
            shard_prompts(attacked, f"{n}/4") for n in range(1, 5)
        ]


@pytest.mark.parametrize("text", ["0/4", "5/4", "1", "1/0", "a/b", "1/4/2"])
def test_a_shard_is_i_of_n(text: str) -> None:
    with pytest.raises(ValueError, match="i/n"):
        Shard.of(text)


def test_a_merge_is_checked_for_completeness(tmp_path: Path) -> None:
    with serving(echo) as server:
        sharded(tmp_path, 2, prompts_to(12), server)
    second = tmp_path / "shard-2-of-2"
    aside = tmp_path / "aside"
    second.rename(aside)
    with pytest.raises(ValueError, match=r"the shards 2/2 are missing"):
        merge_shards(tmp_path)
    aside.rename(second)
    rows = (second / "c.jsonl").read_text()
    (second / "c.jsonl").write_text("".join(rows.splitlines(keepends=True)[:-1]))
    with pytest.raises(ValueError, match=r"rows, but \d+ were counted"):
        merge_shards(tmp_path)
    first = (tmp_path / "shard-1-of-2" / "c.jsonl").read_text().splitlines(keepends=True)[0]
    (second / "c.jsonl").write_text("".join(rows.splitlines(keepends=True)[:-1]) + first)
    with pytest.raises(ValueError, match="in two shards"):
        merge_shards(tmp_path)
    (second / "c.jsonl").write_text(rows)
    (second / "c.tally.json").rename(second / "kept")
    assert merge_shards(tmp_path) == {} and not (tmp_path / "c.jsonl").exists()
