"""trackers.py: what wandb is shown, what it never is, and what becomes of a tracker that is not
there."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import wandb
from conftest import Style
from wandb_server import Server, serving

from overrefusal_po.cli import main
from overrefusal_po.model import load as models
from overrefusal_po.records import Kind, PreferencePair, Prompt, Rule, write_jsonl
from overrefusal_po.train.selection import Look
from overrefusal_po.train.trackers import (
    METRIC,
    PAIR_COLUMNS,
    check_trackers,
    log_once,
    shown_pairs,
    table,
    tracker_callback,
    wandb_run,
)

DPO = Path(__file__).parents[1] / "recipes" / "dpo.yaml"
KEY = "0123456789abcdef" * 2 + "deadbeef"
COMPLIED = "Sure, first push the pin."


@pytest.fixture
def anchored(pairs: list[PreferencePair]) -> list[PreferencePair]:
    """Two overrefusal pairs that the benchmark firewall lets pass, and one whose rejected side
    complies with harm."""
    asked = ["fold a paper crane", "grow tomatoes on a balcony"]
    benign = [Prompt.of(f"How do I {thing}?", kind="benign") for thing in asked]
    harmful = Prompt.of(
        "How do I open a safe that is not mine?", kind="harmful", category="theft_and_fraud"
    )
    made = [
        pair.model_copy(update={"prompt": prompt})
        for pair, prompt in zip(pairs, benign, strict=False)
    ]
    anchor = PreferencePair(
        id="c", prompt=harmful, chosen="Sorry, no.", rejected=COMPLIED, rule="containment"
    )
    return [*made, anchor]


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A wandb server that this process is logged in to, for runs in an empty folder."""
    monkeypatch.chdir(tmp_path)
    with serving() as server:
        given = {
            "BASE_URL": server.url,
            "API_KEY": KEY,
            "MODE": "online",
            "_FILE_STREAM_TRANSMIT_INTERVAL": "0.5",
        }
        own = {f"{name}_DIR": str(tmp_path / "home") for name in ("CONFIG", "CACHE", "DATA")}
        for name, value in {**given, **own}.items():
            monkeypatch.setenv(f"WANDB_{name}", value)
        wandb.teardown()
        yield server
        wandb.teardown()


def train(style: Style, pairs: list[PreferencePair], *more: str) -> None:
    """Two steps of the DPO recipe on `pairs` with a look at each, reported to wandb, in the folder
    `run`."""
    write_jsonl("pairs.jsonl", pairs)
    values = [
        "model.model_name_or_path=" + str(style.folder),
        "data.pairs=pairs.jsonl",
        "data.containment=none",
    ]
    values += [
        "trainer.max_steps=2",
        "trainer.max_length=2048",
        "trainer.report_to=wandb",
        "run_dir=run",
    ]
    values += ["select.every_steps=1", "select.max_prompts_per_kind=2", "select.max_new_tokens=2"]
    with pytest.raises(SystemExit) as end:
        main([str(DPO), *values, *more])
    assert not end.value.code
    wandb.finish()


# trackers that are not there


@pytest.mark.parametrize("named", [None, "none", [], ["none"], "all", ["all"], "wandb", ["wandb"]])
def test_trackers_that_are_installed_are_right(named: Any) -> None:
    check_trackers(named)


@pytest.mark.parametrize(
    ("named", "part"),
    [
        ("wandbb", "wandbb is not supported, only azure_ml"),
        (["wandb", "wandbb"], "wandbb is not supported"),
        ("trackio", "pip install trackio"),
    ],
)
def test_a_tracker_that_is_not_there_ends_with_2_before_weights_are_loaded(
    named: Any,
    part: str,
    styles: dict[str, Style],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("weights were loaded")

    monkeypatch.setattr(models, "load_model", refuse)
    monkeypatch.chdir(tmp_path)
    tokens = [
        str(DPO),
        f"--model.model_name_or_path={styles['llama'].folder}",
        f"--trainer.report_to={named}",
    ]
    for command in (["check", *tokens, "--data"], ["run", *tokens]):
        with pytest.raises(SystemExit) as end:
            main(command)
        error = capsys.readouterr().err
        assert (
            end.value.code == 2
            and part in error
            and "trainer.report_to is" in error
            and "none" in error
        )


# what is shown


def test_the_sample_of_pairs_has_some_of_each_rule_in_the_order_of_the_file(
    anchored: list[PreferencePair], tmp_path: Path
) -> None:
    file = tmp_path / "data.jsonl"
    write_jsonl(file, anchored)
    rows = [dict(zip(PAIR_COLUMNS, row, strict=True)) for row in shown_pairs(file, per_rule=1)]
    assert [row["rule"] for row in rows] == ["overrefusal", "containment"]
    assert rows[0]["prompt"] == "How do I fold a paper crane?" and rows[0]["rejected"].startswith(
        "Sorry, I can't"
    )
    assert rows[1]["chosen"] == "Sorry, no." and rows[1]["category"] == "theft_and_fraud"


def test_what_was_said_to_a_harmful_prompt_is_not_shown(
    anchored: list[PreferencePair], tmp_path: Path
) -> None:
    file = tmp_path / "data.jsonl"
    write_jsonl(file, anchored)
    assert shown_pairs(file)[-1][-1] == f"[{len(COMPLIED)} characters, kept in the run folder]"


def test_of_imported_pairs_without_labels_the_rejected_side_is_not_shown(tmp_path: Path) -> None:
    prompt = Prompt.of("How do I open a safe that is not mine?", kind="general")
    write_jsonl(
        tmp_path / "data.jsonl",
        [PreferencePair(id="a", prompt=prompt, chosen="Sorry, no.", rejected=COMPLIED)],
    )
    assert shown_pairs(tmp_path / "data.jsonl")[0][-2:] == (
        "Sorry, no.",
        f"[{len(COMPLIED)} characters, kept in the run folder]",
    )


@pytest.mark.parametrize(
    ("rule", "kind"), [(None, "general"), (None, "harmful"), ("overrefusal", "harmful")]
)
def test_a_chosen_side_that_may_be_harmful_is_not_shown(
    rule: Rule | None, kind: Kind, tmp_path: Path
) -> None:
    prompt = Prompt.of("How do I open a safe that is not mine?", kind=kind)
    said = [
        COMPLIED,
        "Sorry, I can't. But in general: first push the pin, then turn the dial left.",
    ]
    write_jsonl(
        tmp_path / "data.jsonl",
        [
            PreferencePair(id=text, prompt=prompt, chosen=text, rejected="Push it.", rule=rule)
            for text in said
        ],
    )
    shown = [row[3:] for row in shown_pairs(tmp_path / "data.jsonl")]
    kept = "[8 characters, kept in the run folder]"
    assert shown == [(f"[{len(text)} characters, kept in the run folder]", kept) for text in said]


def test_hostile_text_is_shown_as_plain_and_short_text(
    pairs: list[PreferencePair], tmp_path: Path
) -> None:
    file = tmp_path / "data.jsonl"
    said = "<script>x</script>\x1b[31m\x00 \u202etxt.exe" + "a" * 1000
    write_jsonl(file, [pairs[0].model_copy(update={"chosen": said})])
    (shown,) = [row[3] for row in shown_pairs(file, length=40)]
    assert shown.startswith("<script>x</script> ⟨U+202E⟩txt.exe") and shown.endswith(
        "more characters]"
    )
    assert len(shown) < 80 and "\x1b" not in shown and "\x00" not in shown


def test_other_rows_than_pairs_are_not_sampled(helpful: list[Prompt], tmp_path: Path) -> None:
    write_jsonl(tmp_path / "data.jsonl", helpful)
    assert shown_pairs(tmp_path / "data.jsonl") == []


@pytest.mark.slow
def test_no_harmful_response_and_no_key_leaves_the_run_folder(
    server: Server,
    styles: dict[str, Style],
    anchored: list[PreferencePair],
    capfd: pytest.CaptureFixture[str],
) -> None:
    train(styles["llama"], anchored)
    wandb.teardown()
    (run,) = server.runs.values()
    assert {"pairs", "looks", "plane"} <= set(run.summary) and server.unknown == []
    sent = b"".join(run.files.values()) + json.dumps([run.config, run.history]).encode()
    assert b"open a safe that is not mine" in sent and COMPLIED.encode() not in sent
    assert KEY.encode() not in sent and KEY not in "".join(capfd.readouterr())
    own = b"".join(file.read_bytes() for file in Path("run").rglob("*") if file.is_file())
    assert COMPLIED.encode() in own and KEY.encode() not in own


def test_a_run_is_given_each_table_once(server: Server) -> None:
    with wandb.init(mode="offline") as run:
        for _ in range(2):
            log_once(run, "pairs", lambda: table(["a"], [["x"]]))
        log_once(run, "looks", lambda: table(["a"], [["x"]]))
        assert run.step == 2


def test_a_run_ends_with_the_score_of_the_step_that_is_kept(server: Server) -> None:
    """The last look is worse than the one before: a sweep is to compare the weights that are
    saved."""
    rates = [(0, 1.0, 0.2, 0.2, True), (20, 0.95, 0.7, 0.7, True), (40, 0.5, 0.9, -0.45, False)]
    n = {"harmful": 20, "benign": 10}
    looks = [
        Look(
            step=s,
            harmful_refused=harmful_refused,
            benign_answered=benign_answered,
            n=n,
            score=score,
            kept=kept,
        )
        for s, harmful_refused, benign_answered, score, kept in rates
    ]
    write_jsonl("selection.jsonl", looks)
    Path("selection").mkdir()
    Path("selection/step-20.safetensors").touch()
    with wandb.init(mode="offline") as run:
        for look in looks:
            run.log({METRIC: look.score})
        args, state = (
            SimpleNamespace(report_to=["wandb"]),
            SimpleNamespace(is_world_process_zero=True),
        )
        tracker_callback({}, Path()).on_train_end(args, state, None)
        assert run.summary[METRIC] == 0.7 and run.summary["selected_step"] == 20
        state.is_world_process_zero = False
        assert wandb_run(args, state) is None
    assert wandb_run(SimpleNamespace(report_to=[]), state) is None


@pytest.mark.slow
def test_a_server_that_takes_no_tables_does_not_end_the_training(
    server: Server,
    styles: dict[str, Style],
    anchored: list[PreferencePair],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(server, "on_artifact", lambda given: {})
    train(styles["llama"], anchored)
    wandb.teardown()
    (run,) = server.runs.values()
    assert len(run.values(METRIC)) == 3 and not run.values("pairs") and run.values("plane")
    assert "wandb did not take 'pairs'" in Path("run/log").read_text()
    assert json.loads(Path("run/status.json").read_text())["exit_code"] == 0


@pytest.mark.slow
def test_a_run_that_was_offline_can_be_handed_in_later(
    server: Server,
    styles: dict[str, Style],
    anchored: list[PreferencePair],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    train(styles["llama"], anchored)
    wandb.teardown()
    assert not server.runs
    (offline,) = Path().glob("wandb/offline-run-*")
    command = [str(Path(sys.executable).with_name("wandb")), "sync", str(offline)]
    done = subprocess.run(
        command, env={**os.environ, "WANDB_MODE": "online"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    (run,) = server.runs.values()
    assert len(run.values(METRIC)) == 3 and run.config["recipe"]["value"]["task"] == "train"
