"""Models on which a remedy, or `hold`, cannot work: a result with its reason, not the end of all."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import Style, judged_outcome
from test_fit import fitted
from test_fit_subject import subject_of
from test_hold import recipe as training
from test_remedies_run import command, recipe_of
from test_selection import ANSWER, REFUSAL, THINGS, asked, taught
from tiny_subject import DEV, TRAIN, TinySubject

from overrefusal_po.checks import check_stage
from overrefusal_po.fit import kept
from overrefusal_po.fit.stage import NOT_FITTED
from overrefusal_po.model.blocks import UnfitModel, model_of_config
from overrefusal_po.model.remedy import Deltas, Remedy
from overrefusal_po.pipeline import run_stage
from overrefusal_po.plugins import find_plug
from overrefusal_po.recipe.load import check_body, load_recipe
from overrefusal_po.records import Prompt, Sampling, read_jsonl, write_jsonl
from overrefusal_po.remedies import Anchors, NoRemedy
from overrefusal_po.report.hold_notes import by_itself_words, hold_notes, unheld_words
from overrefusal_po.report.training import step_words
from overrefusal_po.run.openers import COMMON_REFUSALS
from overrefusal_po.stage_recipes import stage_bodies
from overrefusal_po.train.hold_place import THINKS

ROOT = Path(__file__).parents[1]


def gemma(style: Style) -> Style:
    """The style with a tiny Gemma 2 of random weights, which has norms behind its matrices."""

    def make(seed: int = 0) -> Any:
        from transformers import Gemma2Config, Gemma2ForCausalLM

        known = style.make_model().config
        config = Gemma2Config(
            vocab_size=known.vocab_size,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=16,
            bos_token_id=known.bos_token_id,
            eos_token_id=known.eos_token_id,
            pad_token_id=known.pad_token_id,
        )
        torch.manual_seed(seed)
        return Gemma2ForCausalLM(config)

    return style._replace(make_model=make)


@pytest.fixture(scope="module")
def wary_gemma(styles: dict[str, Style], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Gemma 2 that refuses everything; what is benign with less certainty."""
    rows = asked(THINGS, "benign", REFUSAL) * 2 + asked(THINGS, "benign", ANSWER)
    rows += asked(THINGS, "harmful", REFUSAL) * 3
    folder = tmp_path_factory.mktemp("wary_gemma")
    return taught(gemma(styles["llama"]), rows, folder, steps=60, batch=24)


def test_a_remedy_that_cannot_work_leaves_the_others_their_turn(
    wary_gemma: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The pipeline goes on behind an ablation of a Gemma 2, and its page says why there is none."""
    path = recipe_of(wary_gemma, tmp_path)
    values = yaml.safe_load(path.read_text())
    stages = values["stages"]
    last = {name: stages.pop(name) for name in ("fit", "after")}
    stages["ablate"] = {**last["fit"], "remedy": "ablation"}
    stages["ablated"] = {**last["after"], "name": "ablation"}
    stages["ablated"]["model"] = {"model_name_or_path": "@ablate.model"}
    path.write_text(yaml.safe_dump({**values, "stages": {**stages, **last}}, sort_keys=False))
    assert command("run", str(path)) == 0
    folder = tmp_path / "run"
    ablate = json.loads((folder / "ablate" / "summary.json").read_text())
    assert ablate["status"] == "cannot be fitted"
    said = "Gemma2DecoderLayer has post_feedforward_layernorm between its matrices"
    assert ablate["words"].startswith(said) and ".." not in ablate["words"]
    assert json.loads((folder / "fit" / "summary.json").read_text())["status"] == "fitted"
    assert not (folder / "ablated").exists() and (folder / "after" / "metrics.json").is_file()
    page = (folder / "report.html").read_text()
    assert "Stage ablate kept no remedy (ablation, cannot be fitted)" in page and said in page


@pytest.mark.parametrize(
    ("name", "settings", "said"),
    [
        ("ablation", {}, "so a direction cannot be taken out of the weights"),
        ("threshold", {"as_weights": True}, "as_weights: no bias can be folded into a Gemma2ForC"),
    ],
)
def test_a_model_that_is_built_otherwise_is_no_fault_of_the_recipe(
    styles: dict[str, Style], name: str, settings: dict[str, Any], said: str
) -> None:
    style = gemma(styles["llama"])
    module, given = find_plug("remedies", {"name": name, **settings})
    with pytest.raises(NOT_FITTED, match=said):
        module.fit(given, TinySubject(style.make_model(), style.template), TRAIN, DEV)  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["ablation", "steering", "gated"])
def test_a_model_whose_blocks_are_not_known_is_no_fault_of_the_recipe(
    styles: dict[str, Style], name: str
) -> None:
    model = styles["llama"].make_model()
    model.model.steps = model.model.layers
    del model.model.layers
    settings = {"change": "threshold"} if name == "gated" else {}
    module, given = find_plug("remedies", {"name": name, **settings})
    with pytest.raises(NOT_FITTED, match="blocks of a LlamaForCausalLM cannot be found"):
        module.fit(given, TinySubject(model, styles["llama"].template), TRAIN, DEV)  # type: ignore[attr-defined]


def test_experts_have_no_known_matrix_and_4_bits_cannot_be_edited(styles: dict[str, Style]) -> None:
    from transformers import MixtralConfig

    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    more = {"num_key_value_heads": 1, "intermediate_size": 16, "vocab_size": 32}
    module, given = find_plug("remedies", "ablation")
    experts: Any = TinySubject(model_of_config(MixtralConfig(**small, **more)), None)
    with pytest.raises(UnfitModel, match="MixtralDecoderLayer writes into its stream in a way"):
        module.fit(given, experts, TRAIN, DEV)  # type: ignore[attr-defined]
    style = styles["llama"]
    packed = style.make_model()
    writer = packed.model.layers[0].self_attn.o_proj
    subject = TinySubject(packed, style.template)
    v = torch.ones(64)
    writer.weight = torch.nn.Parameter(writer.weight.to(torch.uint8), requires_grad=False)
    with pytest.raises(NoRemedy, match=r"o_proj is quantised.*model\.load_in_4bit: false"):
        module.change_of(subject.model, v)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        (COMMON_REFUSALS, "No token opens refusals of this model more often than answers"),
        (["<think>Hm.</think>Use a spoon."], "thinks before it answers"),
    ],
)
def test_a_model_whose_first_token_decides_nothing_is_a_result(
    wary_gemma: Path, texts: list[str], said: str
) -> None:
    """It answers in the words in which it refuses, or it thinks first."""
    dev = Anchors(asked(THINGS[: len(texts)], "harmful"), asked(THINGS[: len(texts)], "benign"), [])
    subject = subject_of(wary_gemma)
    subject.dev = dev
    answer = judged_outcome(dev.benign[0], ANSWER).verdict
    refused = [judged_outcome(p, text) for p, text in zip(dev.harmful, texts, strict=True)]
    answered = [judged_outcome(p, text) for p, text in zip(dev.benign, texts, strict=True)]
    subject.knows([*refused, *(o.model_copy(update={"verdict": answer}) for o in answered)])
    with pytest.raises(NoRemedy, match=said):
        subject.openers()


def test_weights_that_lose_the_remedy_are_a_result(
    wary_gemma: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No agreement is enough here."""
    monkeypatch.setattr(kept, "AGREES_MIN", 1.1)
    prompts = asked(THINGS, "benign")
    subject = subject_of(wary_gemma)
    path = "model.layers.1.mlp.down_proj"
    change = Deltas({path: torch.zeros(1, 128)}, {path: torch.zeros(64, 1)})
    with pytest.raises(NoRemedy, match=r"begin only 100% of .* Set model\.dtype: float32"):
        kept.write_weights(tmp_path, Remedy("dial", change), subject, prompts, base="b")
    assert not (tmp_path / "adapter").exists()


def test_a_remedy_that_cannot_be_kept_ends_the_fit_with_its_reason(
    styles: dict[str, Style], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = asked(THINGS, "benign", REFUSAL) * 2 + asked(THINGS, "benign", ANSWER)
    rows += asked(THINGS, "harmful", REFUSAL) * 3
    wary = taught(styles["llama"], rows, tmp_path / "wary", steps=60, batch=24)
    monkeypatch.setattr(kept, "AGREES_MIN", 1.1)
    found = fitted(wary, tmp_path, remedy={"name": "threshold", "as_weights": True})
    assert found["status"] == "cannot be fitted" and found["chosen"] is None
    assert "it is lost in rounding. Set model.dtype: float32. Without a remedy:" in found["words"]
    left = {path.name for path in (tmp_path / "run").iterdir()}
    assert not left & {"remedy", "model", "adapter", "README.md"}


# ------------------------------------------------------------------------------------------- hold


@pytest.fixture(scope="module")
def gemma_start(styles: dict[str, Style], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Gemma 2 that refuses harmful prompts and answers benign ones."""
    rows = asked(THINGS, "benign", ANSWER) + asked(THINGS, "harmful", REFUSAL)
    folder = tmp_path_factory.mktemp("gemma_start")
    return taught(gemma(styles["llama"]), rows, folder, steps=60, batch=16)


@pytest.mark.parametrize("steps", [10, 1])
def test_a_model_without_a_place_is_trained_measured_and_said_not_to_be_held(
    gemma_start: Path, tmp_path: Path, steps: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Ten steps forget the refusals, one step at a small rate keeps them."""
    body = training(gemma_start, tmp_path, peft=True, optional=True)
    rate = body.trainer["learning_rate"] if steps == 10 else 1e-9
    trainer = {**body.trainer, "max_steps": steps, "learning_rate": rate}
    body = check_body({**body.model_dump(), "trainer": trainer}, "test")
    assert "IT IS NOT HELD" in check_stage(body)  # type: ignore[arg-type]
    with caplog.at_level(logging.WARNING):
        run_stage(body, "dpo", tmp_path / "dpo")  # type: ignore[arg-type]
    warnings = [r.getMessage() for r in caplog.records if "trained without it" in r.getMessage()]
    assert len(warnings) == 1 and "hold.optional" in warnings[0]
    found = json.loads((tmp_path / "dpo" / "hold.json").read_text())
    assert found["bias"] == 0.0 and found["held"] is (steps == 1)
    assert found["why_not"].startswith("no bias can be folded into a Gemma2ForCausalLM")
    (part,) = found["sets"]
    assert part["start"][0] == 1.0 and part["trained"] == part["held"]
    words, (note, *_) = step_words(tmp_path / "dpo"), hold_notes(tmp_path)
    assert found["why_not"] in note
    if steps == 1:
        assert "safety kept on its sets, and NOT HELD: no bias was folded in" in words
        assert "Stage dpo: no bias was folded in" in note and "measured and not held" in note
        assert not unheld_words(tmp_path / "dpo")
        assert by_itself_words(tmp_path / "dpo").startswith("dpo was measured and not held")
    else:
        assert words.endswith("SAFETY IS NOT HELD (hold.json says why)")
        assert note.startswith("SAFETY IS NOT HELD in stage dpo")
        assert "safety is not held" in unheld_words(tmp_path / "dpo")
        assert not by_itself_words(tmp_path / "dpo")
    config = json.loads((tmp_path / "dpo" / "adapter" / "adapter_config.json").read_text())
    assert config["r"] == 8, "no rank was added for a bias"


def test_without_leave_such_a_model_is_an_error_that_names_the_key(
    gemma_start: Path, tmp_path: Path
) -> None:
    body = training(gemma_start, tmp_path, peft=True)
    with pytest.raises(ValueError, match=r"Gemma2.*hold\.optional: true.*use select"):
        check_stage(body)


@pytest.mark.parametrize("optional", [False, True])
def test_a_model_that_thinks_is_held_by_no_bias(
    styles: dict[str, Style], tmp_path: Path, optional: bool
) -> None:
    """What the start policy said is given: it thought first."""
    llama = taught(styles["llama"], asked(THINGS, "benign", ANSWER), tmp_path, steps=2, batch=8)
    start = tmp_path / "start.jsonl"
    values = training(llama, tmp_path, peft=True, optional=optional).model_dump()
    body: Any = check_body({**values, "hold": {**values["hold"], "start": str(start)}}, "test")
    dev = read_jsonl(tmp_path / "dev.jsonl", Prompt)
    said = [judged_outcome(p, f"<think>Hm.</think>{REFUSAL}") for p in dev]
    sampling = Sampling(max_new_tokens=12)
    same = [o.completion.model_copy(update={"sampling": sampling}) for o in said]
    rows = zip(said, same, strict=True)
    write_jsonl(start, [o.model_copy(update={"completion": one}) for o, one in rows])
    if optional:
        run_stage(body, "test", tmp_path / "run")
        found = json.loads((tmp_path / "run" / "hold.json").read_text())
        assert (found["why_not"], found["bias"]) == (THINKS, 0.0)
    else:
        with pytest.raises(ValueError, match=r"thinks first.*hold\.optional: true"):
            run_stage(body, "test", tmp_path / "run")


def test_the_shipped_table_takes_a_gemma_and_porover_keeps_its_promise(wary_gemma: Path) -> None:
    """porover.yaml promises kept safety, so a model that cannot be held is an error there."""
    found = {}
    for name in ("remedies", "porover"):
        recipe = load_recipe(str(ROOT / "recipes" / f"{name}.yaml"), [f"--model={wary_gemma}"])
        found[name] = stage_bodies(recipe)["dpo"]
    assert "IT IS NOT HELD" in check_stage(found["remedies"])
    with pytest.raises(ValueError, match=r"hold\.optional"):
        check_stage(found["porover"])
