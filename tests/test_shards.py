"""Shards: the recipe's key, the command that merges, what a merge refuses; and ranks, of which one
alone generates.

The files themselves are in test_generate.
"""

import json
from pathlib import Path

import pytest
import yaml
from openai_server import says, serving

from overrefusal_po.cli import main
from overrefusal_po.recipe.load import load_recipe
from overrefusal_po.recipe.shard import Shard
from overrefusal_po.records import Prompt
from overrefusal_po.run.shards import check_done, check_merged, shard_prompts
from overrefusal_po.stages import shard_folder

RECIPES = Path(__file__).parents[1] / "recipes"


def finished(folder: Path, number: int, parts: int, *, key: str = "k", state: str = "done") -> Path:
    """A shard's folder with one completion file, as a run leaves it."""
    place = folder / Shard(number, parts).folder
    place.mkdir(parents=True)
    row = {"prompt_id": f"p{number}", "sample": 0, "sampling": {}, "text": f"said by {number}"}
    (place / "c.jsonl").write_text(json.dumps(row) + "\n")
    (place / "c.tally.json").write_text(json.dumps({"completed": 1, "failed": 0}))
    (place / "status.json").write_text(json.dumps({"state": state, "key": key}))
    return place


def merged(folder: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """(exit code, output) of the command."""
    with pytest.raises(SystemExit) as end:
        main(["merge", str(folder)])
    out, err = capsys.readouterr()
    return int(end.value.code or 0), out + err


def test_finished_shards_are_merged_and_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in (1, 2, 3):
        finished(tmp_path, number, 3)
    code, said = merged(tmp_path, capsys)
    assert code == 0 and "c.jsonl: 3 completions of 3 shards, each once" in said
    rows = [json.loads(line) for line in (tmp_path / "c.jsonl").read_text().splitlines()]
    assert [row["prompt_id"] for row in rows] == ["p1", "p2", "p3"]


def test_verdicts_of_slow_judges_are_put_behind_those_that_are_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in (1, 3):  # the second shard had nothing to judge
        (finished(tmp_path, number, 3) / "verdicts.jsonl").write_text(
            f'{{"completion_id": "c{number}"}}\n'
        )
    finished(tmp_path, 2, 3)
    (tmp_path / "verdicts.jsonl").write_text('{"completion_id": "c0"}\n')
    assert merged(tmp_path, capsys)[0] == 0
    rows = [json.loads(line) for line in (tmp_path / "verdicts.jsonl").read_text().splitlines()]
    assert [row["completion_id"] for row in rows] == ["c0", "c1", "c3"]


def test_the_ledgers_of_verdicts_become_one_also_if_a_merge_is_made_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Equal rows are rows of two verdicts and all stay."""
    for number in (1, 3):
        folder = finished(tmp_path, number, 3)
        (folder / "verdicts.ledger.jsonl").write_text('{"prompt_id": "p"}\n' * number)
    finished(tmp_path, 2, 3)
    for _ in range(2):
        assert merged(tmp_path, capsys)[0] == 0
        assert (tmp_path / "verdicts.ledger.jsonl").read_text() == '{"prompt_id": "p"}\n' * 4
        note = json.loads((tmp_path / "merged.json").read_text())
        (tmp_path / "merged.json").write_text(json.dumps({**note, "done": False}))


def test_a_merge_that_is_made_again_after_a_kill_writes_no_verdict_twice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The kill came behind the files and before the note that they are whole."""
    for number in (1, 2):
        (finished(tmp_path, number, 2) / "verdicts.jsonl").write_text(
            f'{{"completion_id": "c{number}"}}\n'
        )
    (tmp_path / "verdicts.jsonl").write_text('{"completion_id": "c0"}\n{"comple')  # torn
    assert merged(tmp_path, capsys)[0] == 0
    before = {file.name: file.read_text() for file in tmp_path.glob("*.jsonl")}
    note = json.loads((tmp_path / "merged.json").read_text())
    (tmp_path / "merged.json").write_text(json.dumps({**note, "done": False}))
    assert merged(tmp_path, capsys)[0] == 0
    assert {file.name: file.read_text() for file in tmp_path.glob("*.jsonl")} == before
    ids = [json.loads(line)["completion_id"] for line in before["verdicts.jsonl"].splitlines()]
    assert ids == ["c0", "c1", "c2"]


def say_again(place: Path, text: str, name: str = "c") -> None:
    """A shard was run again, and its model said something else."""
    (place / "c.jsonl").unlink()
    (place / "c.tally.json").unlink()
    row = {"prompt_id": place.name, "sample": 0, "sampling": {}, "text": text}
    (place / f"{name}.jsonl").write_text(json.dumps(row) + "\n")
    (place / f"{name}.tally.json").write_text(json.dumps({"completed": 1, "failed": 0}))


def test_shards_that_were_run_again_are_merged_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = [finished(tmp_path, number, 2) for number in (1, 2)]
    assert merged(tmp_path, capsys)[0] == 0
    assert "merged already" in merged(tmp_path, capsys)[1]
    check_merged(tmp_path)
    say_again(places[1], "new words")
    with pytest.raises(ValueError, match=r"shard-2-of-2 changed after the merge\. Run `overref"):
        check_merged(tmp_path)
    code, said = merged(tmp_path, capsys)
    assert code == 0 and "c.jsonl: 2 completions of 2 shards" in said
    assert "new words" in (tmp_path / "c.jsonl").read_text()
    check_merged(tmp_path)
    for place in places:
        say_again(place, "under another name", "d")
    code, said = merged(tmp_path, capsys)
    assert code == 0 and "d.jsonl: 2 completions of 2 shards" in said
    assert not (tmp_path / "c.jsonl").exists(), "what no shard holds any longer would be read"
    assert "merged already" in merged(tmp_path, capsys)[1]


def test_a_run_that_has_begun_keeps_what_was_merged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = [finished(tmp_path, number, 2) for number in (1, 2)]
    assert merged(tmp_path, capsys)[0] == 0
    before = (tmp_path / "c.jsonl").read_text()
    (tmp_path / "status.json").write_text("{}")
    assert "merged already" in merged(tmp_path, capsys)[1]
    say_again(places[0], "new words")
    code, said = merged(tmp_path, capsys)
    assert code == 2 and "shard-1-of-2 changed after the merge" in said
    assert "delete everything in that folder but the shards" in " ".join(said.split())
    assert (tmp_path / "c.jsonl").read_text() == before
    with pytest.raises(ValueError, match="move the shards' folders away"):
        check_merged(tmp_path)
    for place in places:
        place.rename(tmp_path.with_name(f"{tmp_path.name}-{place.name}"))
    check_merged(tmp_path)


def test_a_shard_that_is_missing_not_finished_or_anothers_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    finished(tmp_path, 1, 3)
    finished(tmp_path, 3, 3, state="running")
    code, said = merged(tmp_path, capsys)
    assert code == 2 and "the shards 2/3 are missing" in said
    finished(tmp_path, 2, 3)
    code, said = merged(tmp_path, capsys)
    assert (
        code == 2
        and "shard-3-of-3 is not finished (it is 'running')" in said
        and "--shard 3/3" in said
    )
    (tmp_path / "shard-3-of-3" / "status.json").write_text(
        json.dumps({"state": "done", "key": "other"})
    )
    code, said = merged(tmp_path, capsys)
    assert (
        code == 2
        and "shard-3-of-3 is of another recipe" in said
        and not (tmp_path / "c.jsonl").exists()
    )


def test_a_completion_that_is_there_twice_or_lost_stops_a_merge(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, two = finished(tmp_path, 1, 2), finished(tmp_path, 2, 2)
    kept = (two / "c.jsonl").read_text()
    (two / "c.jsonl").write_text((one / "c.jsonl").read_text())
    code, said = merged(tmp_path, capsys)
    assert code == 2 and "prompt p1, sample 0 is in two shards" in said
    (two / "c.jsonl").write_text("")
    code, said = merged(tmp_path, capsys)
    assert code == 2 and "holds 0 rows, but 1 were counted" in said
    (two / "c.jsonl").write_text(kept)
    assert check_done(tmp_path) == 2 and merged(tmp_path, capsys)[0] == 0


def test_a_shard_works_in_a_folder_of_its_own_in_the_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    whole = load_recipe(RECIPES / "curate.yaml")
    assert shard_folder(whole) is None
    for given in (["--shard=2/4"], ["--shard", "2/4"]):
        part, other = (
            load_recipe(RECIPES / "curate.yaml", given),
            load_recipe(RECIPES / "curate.yaml", ["shard=3/4"]),
        )
        found = shard_folder(part)
        assert (
            found is not None
            and found.name == "shard-2-of-4"
            and found.parent == shard_folder(other).parent
        )  # type: ignore[union-attr]
    fixed = shard_folder(load_recipe(RECIPES / "curate.yaml", ["--shard=1/2", "--run_dir=here"]))
    assert fixed == Path("here/shard-1-of-2")


@pytest.mark.parametrize("given", ["5/4", "0/4", "half", "1-2"])
def test_a_recipes_shard_is_i_of_n(given: str) -> None:
    with pytest.raises(ValueError, match=r"shard is '.*i/n with i from 1 to n"):
        load_recipe(RECIPES / "curate.yaml", [f"--shard={given}"])


def test_shards_take_all_prompts_between_them() -> None:
    asked = [Prompt.of(f"How do I kill process {n}?", kind="benign") for n in range(60)]
    found = [p.id for n in (1, 2, 3) for p in shard_prompts(asked, f"{n}/3")]
    assert sorted(found) == sorted(p.id for p in asked)


# ranks


def test_of_two_ranks_the_first_alone_generates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with serving(lambda request: says("Here is how: open it and look.")) as server:
        engine = {"name": "openai", "base_url": server.url, "api_key_env": None}
        body = {
            "task": "curate",
            "makes": "sft",
            "model": {"model_name_or_path": "m"},
            "engine": engine,
        }
        body |= {
            "data": {"benign": {"name": "starter", "max": 20}, "harmful": None},
            "run_dir": str(tmp_path / "run"),
        }
        (tmp_path / "curate.yaml").write_text(yaml.safe_dump(body))
        for rank in ("1", "0"):
            monkeypatch.setenv("RANK", rank)
            with pytest.raises(SystemExit) as end:
                main([str(tmp_path / "curate.yaml")])
            said = capsys.readouterr().out
            assert not end.value.code and bool(server.requests) == ("folder: " in said) == (
                rank == "0"
            )
            assert (tmp_path / "run").exists() == (rank == "0")
    assert len(server.requests) == len((tmp_path / "run" / "sft.jsonl").read_text().splitlines())
