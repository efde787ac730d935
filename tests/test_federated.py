"""recipes/studies/federated.yaml: its stages, and the whole of it on a tiny model."""

from pathlib import Path

import pytest
from test_fit import DEV_THINGS, values_of, wary
from test_selection import ANSWER, REFUSAL, THINGS, asked
from test_training_shards import pairs

from overrefusal_po.pipeline import run_pipeline
from overrefusal_po.recipe.load import load_recipe
from overrefusal_po.records import PreferencePair, Triple, read_jsonl, read_state, write_jsonl
from overrefusal_po.report.summary import read_summary
from overrefusal_po.stage_recipes import stage_bodies

__all__ = ["wary"]  # a fixture

STUDY = Path(__file__).parents[1] / "recipes" / "studies" / "federated.yaml"
CLIENTS = [f"client_{number}" for number in range(1, 6)]


def test_no_two_of_clients_and_server_share_a_pair_and_all_begin_alike() -> None:
    stages = stage_bodies(load_recipe(str(STUDY), []))
    trained = [stages[name] for name in (*CLIENTS, "realigned")]
    shards = [getattr(body.data, "shard", None) or body.data["shard"] for body in trained]
    assert shards == [f"{number}/6" for number in range(1, 7)]
    begun = [stages[name].model["model_name_or_path"] for name in (*CLIENTS, "before", "fused")]
    assert set(begun) == {"@derta.model"}
    assert len({stages[name].seed for name in CLIENTS}) == 1


def overrides(model: Path, folder: Path) -> list[str]:
    """The study on a tiny model that over-refuses already, with prompts and pairs in files."""
    values_of(model, folder)
    write_jsonl(folder / "pairs.jsonl", pairs())
    triples = [
        Triple(prompt=prompt, safe_response=REFUSAL, harmful_response=ANSWER)
        for prompt in asked(THINGS, "harmful")
    ]
    write_jsonl(folder / "triples.jsonl", triples)
    tests = [f"a part of {thing}" for thing in DEV_THINGS]
    write_jsonl(folder / "test.jsonl", asked(tests, "harmful") + asked(tests, "benign"))
    found = {"model": model, "model.dtype": "float32", "run_dir": folder / "run"}
    derta = {
        "data.triples": folder / "triples.jsonl",
        "data.helpful": "[]",
        "trainer.learning_rate": 1e-9,  # the model stays as it is
        "trainer.max_steps": 1,
    }
    measured = {"data.sets": f"[{folder / 'test.jsonl'}]", "generation.max_new_tokens": 16}
    fused = {
        **{f"data.{kind}": folder / f"{kind}.jsonl" for kind in ("harmful", "benign", "ordinary")},
        "data.choose.sets": f"[{folder / 'dev.jsonl'}]",
        "generation.max_new_tokens": 16,
    }
    learned = {
        "data.pairs": folder / "pairs.jsonl",
        "data.containment": "none",
        "trainer.learning_rate": 5e-3,
    }
    parts = {"derta": derta, "fused": fused, "before": measured}
    parts |= dict.fromkeys(("client_1_after", "fused_after", "realigned_after"), measured)
    parts |= dict.fromkeys((*CLIENTS, "realigned"), learned)
    found |= {f"stages.{name}.{k}": v for name, part in parts.items() for k, v in part.items()}
    return [f"--{key}={value}" for key, value in found.items()]


@pytest.mark.slow
def test_the_study_runs_whole_on_a_tiny_model(wary: Path, tmp_path: Path) -> None:
    folder = run_pipeline(load_recipe(str(STUDY), overrides(wary, tmp_path)), lambda path: path)
    fused = read_state(folder / "fused" / "summary.json")
    assert fused["status"] == "fitted" and fused["facts"]["rule"] == "median"
    learned = [
        {row.id for row in read_jsonl(folder / name / "data.jsonl", PreferencePair)}
        for name in (*CLIENTS, "realigned")
    ]
    assert sum(map(len, learned)) == len(set().union(*learned)) == len(pairs())
    part = read_summary(folder).remedies
    assert part is not None
    rows = {row.run: row for row in part.rows}
    assert rows.keys() >= {"client 1", "fused", "realigned"}
    assert rows["fused"].served == "weights"
    assert rows["realigned"].made_by[-2:] == ("fused", "realigned")
