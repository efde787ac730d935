"""Two rounds of curate and dpo on a tiny model that really over-refuses."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import Style
from openai_server import Answer, Request, says, serving
from test_selection import ANSWER, REFUSAL, THINGS, asked, taught

from overrefusal_po.cli import main
from overrefusal_po.records import (
    Completion,
    PreferencePair,
    Prompt,
    Sampling,
    read_jsonl,
    write_jsonl,
)

RECIPES = Path(__file__).parents[1] / "recipes"
HELD = ["a picture", "a letter", "the door", "a pack"]
MEASURED = ["a fox", "a dog", "a ring"]
Write = Callable[..., Path]


def harmless(things: list[str]) -> list[Prompt]:
    """Prompts that the start policy refuses for one word, and such that it answers."""
    texts = [f"Kill {thing} today." for thing in things]
    texts += [f"Open {thing} for me." for thing in things]
    return [Prompt.of(text, kind="benign", reference=ANSWER) for text in texts]


@pytest.fixture(scope="module")
def refuser(styles: dict[str, Style], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model that refuses harm, and half of the benign prompts."""
    half = len(THINGS)
    benign = harmless(THINGS)
    rows = [p.model_copy(update={"reference": REFUSAL}) for p in benign[:half]] + benign[half:]
    rows += asked(THINGS, "harmful", REFUSAL)
    return taught(styles["llama"], rows, tmp_path_factory.mktemp("start"), steps=80, batch=24)


def said(prompt: Prompt) -> Completion:
    """A given answer to a harmful prompt, as a reject."""
    return Completion(
        id=f"given {prompt.id}",
        prompt_id=prompt.id,
        text=ANSWER,
        model="given",
        engine="file",
        sampling=Sampling(),
    )


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refuser: Path) -> Write:
    """Writes curate -> dpo -> evaluate as pipeline.yaml, with `rounds`, steps and keys of the
    curation."""
    monkeypatch.chdir(tmp_path)
    benign, harmful = harmless(THINGS), asked(THINGS, "harmful", REFUSAL)
    write_jsonl("benign.jsonl", benign)
    write_jsonl("harmful.jsonl", harmful)
    write_jsonl("rejects.jsonl", [said(prompt) for prompt in harmful])
    write_jsonl("held.jsonl", harmless(HELD) + asked(HELD, "harmful"))
    write_jsonl("measured.jsonl", harmless(MEASURED) + asked(MEASURED, "harmful"))

    def write(*, rounds: int, steps: int = 1, rate: float = 1e-5, **curate: Any) -> Path:
        stages = {
            "curate": {
                "recipe": str(RECIPES / "curate.yaml"),
                "data": {
                    "benign": "benign.jsonl",
                    "harmful": "harmful.jsonl",
                    "keep_answered": True,
                },
                "rejects": {"completions": "rejects.jsonl", "prefill": None},
                "generation": {"max_new_tokens": 40},
                **curate,
            },
            "dpo": {
                "recipe": str(RECIPES / "dpo.yaml"),
                "data": {"pairs": "@curate.pairs", "containment": "none"},
                "trainer": {"max_steps": steps, "learning_rate": rate},
                "hold": {"sets": ["held.jsonl"], "max_new_tokens": 12, "bias_max": 40},
            },
            "after": {
                "recipe": str(RECIPES / "evaluate.yaml"),
                "name": "after",
                "model": "@dpo.model",
                "data": {"sets": ["measured.jsonl"]},
                "generation": {"max_new_tokens": 12},
            },
        }
        values = {"task": "pipeline", "model": str(refuser), "run_dir": "out", "rounds": rounds}
        path = tmp_path / "pipeline.yaml"
        path.write_text(yaml.safe_dump({**values, "stages": stages}, sort_keys=False))
        return path

    return write


def run(path: Path) -> int:
    """The command's exit code."""
    with pytest.raises(SystemExit) as end:
        main([str(path)])
    return int(end.value.code or 0)


def state(*parts: str) -> Any:
    """A JSON file in the run folder."""
    return json.loads(Path("out", *parts).read_text())


def written(*stages: str) -> dict[Path, int]:
    """{file: when it was written} of some stages."""
    files = [p for s in stages for p in Path("out", s).rglob("*") if p.is_file()]
    return {p: p.stat().st_mtime_ns for p in files if p.name not in ("log", ".lock")}


@pytest.mark.slow
def test_a_second_round_goes_on_from_the_first_in_the_same_folder(
    write: Write, capsys: pytest.CaptureFixture[str], refuser: Path
) -> None:
    assert run(write(rounds=1)) == 0, capsys.readouterr().err
    first = written("curate", "dpo")
    one = state("summary.json")
    assert one["rounds"] == []

    path = write(rounds=2)
    assert run(path) == 0, capsys.readouterr().err
    assert written("curate", "dpo") == first, "round 1 ran again"
    assert state("rounds_1", "summary.json") == one
    assert Path("out/rounds_1/after/metrics.json").is_file()
    recipes = {
        name: yaml.safe_load(Path("out", name, "recipe.yaml").read_text())
        for name in ("curate_2", "dpo_2", "after")
    }
    models = {name: body["model"]["model_name_or_path"] for name, body in recipes.items()}
    assert models == {"curate_2": "out/dpo/model", "dpo_2": "out/dpo/model"} | {
        "after": "out/dpo_2/model"
    }
    assert recipes["dpo_2"]["data"]["pairs"] == "out/curate_2/pairs.jsonl"

    # both rounds are held to the untouched model
    begun = [Path("out", name, "hold_start.jsonl").read_text() for name in ("dpo", "dpo_2")]
    assert begun[0] == begun[1]
    (held,), (held_2,) = (state(name, "hold.json")["sets"] for name in ("dpo", "dpo_2"))
    assert held["start"] == held_2["start"] == [1.0, 0.5]

    # one step of a small rate corrects little: the second round has the same prompts to correct
    pairs = read_jsonl("out/curate_2/pairs.jsonl", PreferencePair)
    corrects = state("curate_2", "summary.json")["corrects"]
    assert corrects["containment"] == 0 < corrects["overrefusal"] <= len(THINGS)
    assert len(pairs) > corrects["overrefusal"]
    assert {pair.rule for pair in pairs} == {"overrefusal", "containment"}
    rounds = state("summary.json")["rounds"]
    assert [one["stages"] for one in rounds] == [["curate", "dpo"], ["curate_2", "dpo_2"]]
    assert rounds[1]["corrects"] == corrects["overrefusal"]
    assert rounds[0]["sets"][0]["held"] == held["held"]
    out = capsys.readouterr().out
    assert "round 2 (curate_2, dpo_2): " in out
    assert "round 2 (curate_2, dpo_2): " in Path("out/report.html").read_text()

    before = written("curate", "dpo", "curate_2", "dpo_2", "after")
    assert run(path) == 0
    assert written("curate", "dpo", "curate_2", "dpo_2", "after") == before
    assert run(write(rounds=1)) == 2, "fewer rounds are another pipeline"
    assert "holds a run of another recipe" in capsys.readouterr().err


@pytest.fixture
def student() -> Iterator[str]:
    """The address of a student that over-refuses, until it is trained: then all is right."""

    def script(request: Request) -> Answer:
        tuned = "dpo" in str(request.body["model"])
        refuses = "Steal" in request.text or (not tuned and "Kill" in request.text)
        return says(REFUSAL if refuses else ANSWER)

    with serving(script) as server:
        yield server.url


@pytest.mark.slow
def test_a_round_with_nothing_left_to_correct_passes_the_model_on(
    write: Write, student: str, capsys: pytest.CaptureFixture[str], caplog: Any
) -> None:
    engine = {"name": "openai", "base_url": student, "api_key_env": None}
    path = write(rounds=3, steps=1, engine=engine)
    with caplog.at_level("INFO"):
        assert run(path) == 0, capsys.readouterr().err
    assert Path("out/curate_2/pairs.jsonl").read_text() == ""
    assert not any(Path("out", name).exists() for name in ("dpo_2", "curate_3", "dpo_3"))
    words = "no pair is left that corrects the student, so this round ends here"
    assert words in caplog.text
    assert "dpo_3 is left out; dpo stands for it" in caplog.text
    after = yaml.safe_load(Path("out/after/recipe.yaml").read_text())
    assert after["model"]["model_name_or_path"] == "out/dpo/model"
    assert f"round 2 (curate_2): {words}" in capsys.readouterr().out
    before = written("curate", "dpo", "curate_2", "after")
    assert run(path) == 0
    assert written("curate", "dpo", "curate_2", "after") == before
