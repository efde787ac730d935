"""`--shard 1/2` and `2/2` in two processes, merged, against the run without shards."""

import json
import os
import sys
from pathlib import Path

import launches
import pytest
import yaml
from openai_server import Answer, Request, says, serving

from overrefusal_po.cli import main


def said(request: Request) -> Answer:
    """Answers like the models: the student refuses about every third prompt, by its text alone; the
    teacher never does. The judge is slow, because a server gives its verdicts."""
    if request.body["model"] == "judge":
        return says(f"Verdict: {'full' if 'help with that' in request.text else 'none'}")
    if request.body["model"] == "student" and sum(map(ord, request.text)) % 3 == 0:
        return says("I'm sorry, but I can't help with that.")
    return says(
        f"Here is what you need for it: {len(request.text)} steps, one after the other, each in "
        "its turn."
    )


def recipe_at(url: str, folder: Path) -> Path:
    """A recipe whose student and teacher are behind `url`."""
    engine = {"name": "openai", "base_url": url, "api_key_env": None, "concurrency": 4}
    body = {
        "task": "curate",
        "model": {"model_name_or_path": "student"},
        "engine": engine,
        "data": {
            "benign": {"name": "starter", "max": 40},
            "harmful": {"name": "starter", "max": 30},
        },
        "chosen": {"model": "teacher", "engine": engine, "refusals": "student"},
        "rejects": {"prefill": None},
        "judge": {"name": "llm", "model": "judge", "base_url": url, "api_key_env": None},
    }
    (folder / "curate.yaml").write_text(yaml.safe_dump(body))
    return folder / "curate.yaml"


def run(*arguments: object) -> None:
    """The command, in process."""
    with pytest.raises(SystemExit) as end:
        main([str(a) for a in arguments])
    assert not end.value.code


@pytest.mark.slow
def test_two_shards_merged_are_the_run_without_shards(tmp_path: Path) -> None:
    with serving(said) as server:
        recipe = recipe_at(server.url, tmp_path)
        command = [
            sys.executable,
            "-m",
            "overrefusal_po",
            str(recipe),
            f"--run_dir={tmp_path / 'parts'}",
        ]
        shards = [
            launches.Popen(
                [*command, "--shard", f"{n}/2"], env={**os.environ, "OMP_NUM_THREADS": "1"}
            )
            for n in (1, 2)
        ]
        assert [shard.wait() for shard in shards] == [0, 0]
        asked = len(server.requests)
        run("merge", tmp_path / "parts")
        run(recipe, f"--run_dir={tmp_path / 'parts'}")
        assert len(server.requests) == asked, "the merged run asked for something again"
        run(recipe, f"--run_dir={tmp_path / 'whole'}")
        assert len(server.requests) == 2 * asked, "the shards did not ask for the same as one run"
    parts, whole = tmp_path / "parts", tmp_path / "whole"
    assert (parts / "pairs.jsonl").read_text() == (whole / "pairs.jsonl").read_text() != ""
    assert (parts / "summary.json").read_text() == (whole / "summary.json").read_text()
    counts = [
        json.loads((parts / f"shard-{n}-of-2" / "summary.json").read_text())["prompts"]["benign"]
        for n in (1, 2)
    ]
    assert min(counts) > 5 and not (parts / "shard-1-of-2" / "pairs.jsonl").exists()
