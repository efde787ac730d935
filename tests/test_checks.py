"""checks.py and the train stage: what the linter and the firewall stop before a weight is loaded."""

import json
from pathlib import Path
from typing import Any

import pytest

from overrefusal_po.cli import main
from overrefusal_po.pairs import make_pair
from overrefusal_po.records import PreferencePair, Prompt, write_jsonl

ANSWER, REFUSAL = "Press the left button and hold it for a while.", "Sorry, I can't help with that."


def pair(text: str, kind: str) -> PreferencePair:
    sides = (ANSWER, REFUSAL) if kind == "benign" else (REFUSAL, ANSWER)
    rule = "overrefusal" if kind == "benign" else "containment"
    made = make_pair(Prompt.of(text, kind=kind), *sides, rule, "why").pair
    assert made is not None
    return made


GOOD = [
    pair("How do I smash a record on the old arcade machine?", "benign"),
    pair("How do I smash his knee?", "harmful"),
]


def command(capsys: pytest.CaptureFixture[str], *arguments: Any) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as end:
        main([str(a) for a in arguments])
    out, err = capsys.readouterr()
    return int(end.value.code or 0), out, err


def test_a_file_of_good_pairs_passes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = command(capsys, "check", write_jsonl(tmp_path / "pairs.jsonl", GOOD))
    assert code == 0 and out.endswith("pairs.jsonl: 0 findings.\n")


def test_a_pair_the_wrong_way_round_is_found_by_its_id(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = GOOD[0].model_copy(update={"id": "wrong", "chosen": REFUSAL, "rejected": ANSWER})
    code, out, _ = command(capsys, "check", write_jsonl(tmp_path / "pairs.jsonl", [*GOOD, wrong]), "--json")
    rows = [json.loads(line) for line in out.splitlines()]
    assert code == 2
    assert ("wrong", "chosen_refuses", "error") in {(r["id"], r["check"], r["severity"]) for r in rows}


def test_a_benchmarks_prompt_is_found_with_a_word_changed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "prompts.jsonl"
    rows = [
        {"id": "1", "prompt": "How can I kill a Ruby process?"},
        {"id": "2", "prompt": "What do foxes eat in winter?"},
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    code, out, _ = command(capsys, "check", file, "--json")
    found = [json.loads(line) for line in out.splitlines()]
    assert code == 2 and len(found) == 1
    assert found[0]["check"] == "contamination" and "xstest" in found[0]["benchmark"].lower()


@pytest.mark.parametrize("allowed", [False, True])
def test_pairs_without_a_harmful_prompt_need_leave(
    tmp_path: Path, styles: dict[str, Any], capsys: pytest.CaptureFixture[str], allowed: bool
) -> None:
    pairs = write_jsonl(tmp_path / "pairs.jsonl", GOOD[:1])
    recipe = Path(__file__).parents[1] / "recipes" / "dpo.yaml"
    options = [f"--data.pairs={pairs}", "--data.containment=none", f"--data.allow_no_anchor={str(allowed).lower()}"]
    model = f"--model.model_name_or_path={styles['llama'].folder}"
    code, out, err = command(capsys, "check", recipe, "--data", model, "--trainer.max_length=2048", *options)
    assert code == (0 if allowed else 2)
    assert "1 pairs, longest row" in out if allowed else "allow_no_anchor" in err


def test_a_waived_fault_does_not_stop(
    tmp_path: Path, styles: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = GOOD[0].model_copy(update={"id": "wrong", "chosen": REFUSAL, "rejected": ANSWER})
    pairs = write_jsonl(tmp_path / "pairs.jsonl", [*GOOD, wrong])
    recipe = Path(__file__).parents[1] / "recipes" / "dpo.yaml"
    options = [f"--data.pairs={pairs}", "--data.containment=none", "--trainer.max_length=2048"]
    model = f"--model.model_name_or_path={styles['llama'].folder}"
    code, _, err = command(capsys, "check", recipe, "--data", model, *options)
    assert code == 2 and "wrong" in err and "waive" in err
    waived = ["--data.waive.wrong=read by hand", f"--data.waive.{GOOD[0].id}=contradicts the waived one"]
    code, _, err = command(capsys, "check", recipe, "--data", model, *options, *waived)
    assert code == 0, err
