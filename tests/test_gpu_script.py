"""benchmarks/gpu.py on small shapes: what a GPU will run for minutes, run here for seconds."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("bitsandbytes")
sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import attention_forms
import gpu

pytestmark = pytest.mark.slow


def run(monkeypatch: pytest.MonkeyPatch, folder: Path, *arguments: str) -> list[dict[str, Any]]:
    """What `python benchmarks/gpu.py --tiny` writes."""
    for name in ("HF_HUB_OFFLINE", "TOKENIZERS_PARALLELISM"):
        monkeypatch.setenv(name, "")  # it sets them; what they were comes back at the end
    monkeypatch.setattr(
        sys, "argv", ["gpu.py", "--tiny", f"--out={folder}", f"--models={folder}", *arguments]
    )
    with pytest.raises(SystemExit) as end:
        gpu.main()
    assert not end.value.code
    file = folder / "gpu.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def test_a_random_model_in_nf4_is_made_and_trained_by_both_trainers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = run(monkeypatch, tmp_path, "--here", "--only", "8b-qlora-starter")
    assert [(row["name"], row["side"]) for row in rows[:2]] == [
        ("8b", ""),
        ("8b-qlora-starter", "plain"),
    ]
    quantised = json.loads((tmp_path / "tiny" / "8b" / "config.json").read_text())[
        "quantization_config"
    ]
    assert quantised["bnb_4bit_quant_type"] == "nf4" and quantised["bnb_4bit_use_double_quant"]
    plain, ours = rows[1:]
    assert plain["step_tokens"] == ours["step_tokens"] and plain["step_flops"] == ours["step_flops"]
    assert plain["computed_tokens"] > ours["computed_tokens"] >= sum(ours["step_tokens"])
    assert plain["losses"] == pytest.approx(ours["losses"], abs=1e-3)
    assert all(
        side["estimated_bytes"] > 1e8 < side["peak_bytes"] and side["peak_flops"] > 1e8
        for side in (plain, ours)
    )
    assert "| 8b-qlora-starter | " in capsys.readouterr().out


def test_all_forms_of_attention_agree_and_each_measurement_is_a_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (row,) = run(monkeypatch, tmp_path, "--only", "attention")
    assert len(row["forms"]) == 5 and all(
        form["relative_difference"] < 1e-5 for form in row["forms"]
    )
    assert "| shared, flex | no backward pass on CPUs |" in capsys.readouterr().out
    assert "# Task(name='attention'" in (tmp_path / "gpu.log").read_text()


def test_a_process_that_fails_is_a_row_with_its_last_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu.py", f"--out={tmp_path}", "--no-such-flag"])
    row = gpu.outcome(gpu.arguments([f"--out={tmp_path}"]), gpu.Task("attention"))
    assert row == {"failed": "exit code 2: gpu.py: error: unrecognized arguments: --no-such-flag"}


def test_nothing_is_started_once_the_budget_is_spent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, tmp_path, "--budget-seconds=-1") == []
    assert "not started: attention" in capsys.readouterr().err


def test_sides_alternate_and_a_model_is_made_before_the_trainings_that_need_it(
    tmp_path: Path,
) -> None:
    asked = gpu.arguments(
        [
            "--out",
            "unused",
            "--models",
            str(tmp_path),
            "--only",
            "1.5b-full-long",
            "bundled-long-bf16",
        ]
    )
    expected = [
        ("1.5b", ""),
        *[("1.5b-full-long", side) for side in ("plain", "ours", "ours", "plain")],
    ]
    expected += [("bundled-long-bf16", side) for side in ("plain", "ours", "ours", "plain")]
    assert [(task.name, task.side) for task in gpu.tasks(asked)] == expected


def layout() -> attention_forms.Layout:
    return attention_forms.draw((24, 40, 9), 2, 0, "cpu")


def inputs(found: attention_forms.Layout) -> list[Any]:
    torch.manual_seed(0)
    return [torch.randn(2, heads, found.width, 16) for heads in (4, 2, 2, 4)]


def test_a_form_in_which_the_rejected_side_sees_the_chosen_one_is_wrong() -> None:
    pairs = layout()
    *given, upstream = inputs(pairs)
    right = attention_forms.passed(attention_forms.forms(pairs, "cpu")[2], pairs, given, upstream)
    column = torch.ones(pairs.width, pairs.width, dtype=torch.bool).tril()[None, None]
    plain = attention_forms.Form(
        "", "shared", lambda q, k, v: attention_forms.masked(column, q, k, v)
    )
    relative, greatest = attention_forms.differences(
        attention_forms.passed(plain, pairs, given, upstream), right
    )
    assert relative > 0.1 and greatest > 0.1


def test_segments_are_what_a_kernel_for_them_needs() -> None:
    """torch's own runs on GPUs; here a loop over the segments stands in for it."""
    pairs = layout()
    *given, upstream = inputs(pairs)

    def kernel(q: Any, k: Any, v: Any, q_ends: Any, k_ends: Any, most_q: int, most_k: int) -> Any:
        found = []
        for a, b, c, d in zip(q_ends, q_ends[1:], k_ends, k_ends[1:], strict=False):
            assert b - a <= most_q and d - c <= most_k
            mask = torch.ones(b - a, d - c, dtype=torch.bool).tril(d - c - (b - a))
            one, keys, values = (x.transpose(0, 1)[None] for x in (q[a:b], k[c:d], v[c:d]))
            found.append(attention_forms.masked(mask, one, keys, values)[0].transpose(0, 1))
        return torch.cat(found)

    form = attention_forms.Form("", "pairs", attention_forms.varlen(pairs, kernel))
    right = attention_forms.passed(attention_forms.forms(pairs, "cpu")[2], pairs, given, upstream)
    assert (
        max(
            attention_forms.differences(attention_forms.passed(form, pairs, given, upstream), right)
        )
        < 1e-5
    )


def test_the_table_has_medians_over_steps_and_runs() -> None:
    def row(side: str, seconds: list[float], losses: list[float]) -> dict[str, Any]:
        steps = {
            "step_seconds": seconds,
            "step_tokens": [100, 100],
            "step_flops": [10.0, 10.0],
            "losses": losses,
        }
        sizes = {"peak_flops": 10.0, "peak_bytes": 2e9, "estimated_bytes": 3e9}
        return {"name": "x", "side": side, **steps, **sizes}

    rows = [
        row("plain", [2, 4], [0.5, 0.25]),
        row("ours", [1, 1], [0.5, 0.125]),
        row("ours", [2, 1], [0.5, 0.25]),
    ]
    line = "| x | 38 | 100 | 2.67 | 2.00 | 2.00 | 3.00 / 3.00 | 37.5% | 100.0% | 1.2e-01 |"
    failed = {"name": "y", "side": "ours", "failed": "exit code 1: CUDA out of memory"}
    table = gpu.tables([*rows, failed]).splitlines()
    assert table[2:] == [line, "failed: y ours: exit code 1: CUDA out of memory"]
