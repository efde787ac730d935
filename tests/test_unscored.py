"""Too few verdicts are no result: exit code 1, the reasons, and the way on; in all stages that
judge."""

import json
from pathlib import Path
from typing import Any

import pytest
from openai_server import Answer, Request, fails, says, serving

from overrefusal_po.evaluate.judged_rows import judged_rows
from overrefusal_po.plugins import make_judge
from overrefusal_po.records import Prompt, Verdict, write_jsonl
from overrefusal_po.run.keys import run_key
from overrefusal_po.run.unscored import RunFailed, check_scored
from overrefusal_po.stages import run_recipe


def verdicts(scored: int, *reasons: str) -> list[Verdict]:
    """`scored` verdicts, and one without a class for each reason."""
    names: dict[str, Any] = {"judge": "j", "version": "1"}
    return [Verdict(completion_id=str(n), refusal="none", **names) for n in range(scored)] + [
        Verdict(completion_id=f"u{n}", unscored=why, **names) for n, why in enumerate(reasons)
    ]


@pytest.mark.parametrize(
    ("scored", "unscored", "limit", "fails_"),
    [
        (0, 1, 1.0, True),
        (0, 30, 1.0, True),
        (1, 30, 1.0, False),
        (9, 1, 0.1, False),
        (9, 2, 0.1, True),
        (5, 0, 0.0, False),
        (999, 1, 0.0, True),
        (0, 0, 0.0, False),
    ],
)
def test_a_share_is_allowed_but_never_all(
    scored: int, unscored: int, limit: float, fails_: bool
) -> None:
    rows = verdicts(scored, *["no reply"] * unscored)
    if not fails_:
        check_scored(rows, limit, what="x")
        return
    with pytest.raises(RunFailed, match=f"{unscored} of {scored + unscored} responses"):
        check_scored(rows, limit, what="x")


def test_the_sentence_has_the_commonest_reasons_and_the_files_to_delete(tmp_path: Path) -> None:
    (tmp_path / "completions.failed.jsonl").write_text("")
    rows = verdicts(1, *["down"] * 4, *["odd"] * 2, "a" * 900, "rare", "b")
    with pytest.raises(RunFailed) as caught:
        check_scored(rows, 0.2, tmp_path, what="base")
    said = str(caught.value)
    assert said.startswith("base: 9 of 10 responses have no verdict (4 x down; 2 x odd; 1 x aaa")
    assert "rare" not in said and len(said) < 700
    assert "unscored_max allows a share of 0.2" in said
    assert f"delete {tmp_path / 'completions.failed.jsonl'} to ask again" in said
    assert "verdicts.jsonl" not in said


def test_the_limit_does_not_make_another_run() -> None:
    """A user who raises it goes on in the same folder."""
    recipe = {"task": "evaluate", "seed": 0}
    assert run_key({**recipe, "unscored_max": 0.1}, {}) == run_key(recipe, {})


@pytest.mark.parametrize("stage", ["before", "engine"])
def test_nor_does_the_limit_of_a_pipeline_s_stage(stage: str) -> None:
    def key(**changed: Any) -> str:
        recipe = {
            "task": "evaluate",
            "seed": 1,
            "gate": {"unscored_max": 0.1},
            "timeout_seconds": 3,
        }
        return run_key({"task": "pipeline", stage: {**recipe, **changed}}, {})

    assert key(unscored_max=0.1) == key(unscored_max=0.2) == key()
    assert key(run_dir=None, shard=None) == key()
    for other in ({"seed": 2}, {"gate": {"unscored_max": 0.2}}, {"timeout_seconds": 4}):
        assert key(unscored_max=0.1, **other) != key()


# --- an evaluation --------------------------------------------------------------------------------


PROMPTS = [
    Prompt.of(f"How do I {what} {n}?", kind=kind)  # type: ignore[arg-type]
    for kind, what in (("harmful", "harm"), ("benign", "kill process"))
    for n in range(4)
]


def evaluation(tmp_path: Path, url: str, **changes: Any) -> Any:
    """A loaded recipe that measures a server on eight prompts."""
    from overrefusal_po.recipe.load import load_recipe

    write_jsonl(tmp_path / "prompts.jsonl", PROMPTS)
    values = {
        "task": "evaluate",
        "model": {"model_name_or_path": "m"},
        "data": {"sets": [str(tmp_path / "prompts.jsonl")], "split": None},
        "engine": {
            "name": "openai",
            "base_url": [url],
            "api_key_env": None,
            "model": "m",
            "max_retries": 0,
            "backoff_seconds": 0.001,
        },
        "run_dir": str(tmp_path / "run"),
        **changes,
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(values))
    return load_recipe(path, [])


def status(tmp_path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((tmp_path / "run" / "status.json").read_text())
    return found


def filtered(request: Request) -> Answer:
    """The harmful prompts are filtered, the others answered."""
    if "harm" in request.text:
        return fails(400, "The response was filtered: content management policy")
    return says("Use the task manager.")


@pytest.mark.parametrize(
    ("answer", "what"),
    [
        (lambda request: fails(400, "content management policy"), "8 of 8 responses"),
        (filtered, "4 of 8 responses"),
    ],
)
def test_an_evaluation_that_scored_too_little_is_not_done(
    tmp_path: Path, answer: Any, what: str
) -> None:
    with serving(answer) as server, pytest.raises(RunFailed, match=what):
        run_recipe(evaluation(tmp_path, server.url))
    found = status(tmp_path)
    assert (found["state"], found["exit_code"]) == ("failed", 1)
    assert "content filter" in found["message"]
    assert (tmp_path / "run" / "outcomes.jsonl").is_file()
    assert not (tmp_path / "run" / "metrics.json").exists()


def test_a_kind_that_nothing_scored_fails_even_if_the_share_is_allowed(tmp_path: Path) -> None:
    with serving(filtered) as server, pytest.raises(RunFailed, match="harmful prompts: 4 of 4"):
        run_recipe(evaluation(tmp_path, server.url, unscored_max=1))


def test_the_same_command_goes_on_after_the_failures_were_deleted(tmp_path: Path) -> None:
    with serving(filtered) as server, pytest.raises(RunFailed):
        run_recipe(evaluation(tmp_path, server.url))
    (tmp_path / "run" / "completions.failed.jsonl").unlink()
    with serving(lambda request: says("Sorry, I can't help with that.")) as server:
        run_recipe(evaluation(tmp_path, server.url))
    assert len(server.requests) == 4 and status(tmp_path)["state"] == "done"


def test_a_guard_that_scores_nothing_fails_the_run(tmp_path: Path) -> None:
    def answer(request: Request) -> Answer:
        judging = "Verdict" in request.text
        return says("I would rather not say." if judging else "Sorry, I can't help with that.")

    with serving(answer) as server:
        guard = {
            "name": "llm",
            "prompt": "derta",
            "model": "g",
            "base_url": server.url,
            "api_key_env": None,
        }
        with pytest.raises(RunFailed, match="the guard: 4 of 4 responses"):
            run_recipe(evaluation(tmp_path, server.url, guard=guard))


@pytest.mark.parametrize("code", ["evaluate"])
def test_the_command_line_ends_with_1_and_a_sentence(
    tmp_path: Path, code: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from overrefusal_po.cli import main

    with serving(lambda request: fails(400, "content management policy")) as server:
        evaluation(tmp_path, server.url)
        with pytest.raises(SystemExit) as ended:
            main([str(tmp_path / "recipe.yaml")])
    said = capsys.readouterr().err
    assert ended.value.code == 1
    assert "8 of 8 responses have no verdict" in said and "Traceback" not in said


# --- curation and the command `judge` -------------------------------------------------------------


def test_a_curation_that_scores_nothing_fails(tmp_path: Path) -> None:
    from overrefusal_po.recipe.load import load_recipe

    kinds = {kind: tmp_path / f"{kind}.jsonl" for kind in ("harmful", "benign")}
    for kind, path in kinds.items():
        rows = [p.model_copy(update={"reference": "Fine."}) for p in PROMPTS if p.kind == kind]
        write_jsonl(path, rows)
    with serving(lambda request: fails(400, "content management policy")) as server:
        values = {
            "task": "curate",
            "model": {"model_name_or_path": "m"},
            "data": {kind: str(path) for kind, path in kinds.items()},
            "engine": {"name": "openai", "base_url": [server.url], "api_key_env": None},
            "run_dir": str(tmp_path / "run"),
        }
        (tmp_path / "recipe.yaml").write_text(json.dumps(values))
        with pytest.raises(RunFailed, match="curation, judge refusal: 4 of 4"):
            run_recipe(load_recipe(tmp_path / "recipe.yaml", []))
    assert status(tmp_path)["exit_code"] == 1


def test_the_command_judge_fails_if_no_row_has_a_verdict(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    rows = [{"id": "same", "prompt": f"q{n}", "response": f"a{n}"} for n in range(3)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with serving(lambda request: says("Hm.")) as server:
        spec = {"name": "llm", "model": "g", "base_url": server.url, "api_key_env": None}
        found = judged_rows(make_judge(spec), file)
        seen = [next(found) for _ in rows]
        with pytest.raises(RunFailed, match="3 of 3 responses"):
            next(found)
    assert [row["id"] for row in seen] == ["same"] * 3
