"""Every file of remedies/: fitted on a tiny model, saved, loaded, and the same on the model."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Style
from tiny_subject import DEV, TRAIN, TinySubject, first_logits, generated, lora

from overrefusal_po.engines.transformers import TransformersEngine
from overrefusal_po.fit.measured import Measuring
from overrefusal_po.fit.untreated import Untreated
from overrefusal_po.judges.refusal import RefusalJudge
from overrefusal_po.model.remedied import remedied
from overrefusal_po.model.remedy import load_remedy, remedy_id, save_remedy
from overrefusal_po.plugins import find_plug, plug_files
from overrefusal_po.records import Sampling
from overrefusal_po.remedies import form_of

Given = Callable[[Any, Path], dict[str, Any]]


def adapter_of(model: Any, folder: Path) -> str:
    """The folder of an adapter of the model."""
    lora(model, folder)
    return str(folder)


CASES: dict[str, Given] = {
    "ablation": lambda model, folder: {"max_divergence": 100.0},
    "contrast": lambda model, folder: {"strengths": [0.5, 2.0], "tokens": 3},
    "debias": lambda model, folder: {"samples": 4, "positions": 3},
    "dial": lambda model, folder: {"adapter": adapter_of(model, folder)},
    "fusion": lambda model, folder: {
        "adapters": {"one": adapter_of(model, folder), "two": str(folder)},
        "weights": {"one": [0.5], "two": [0.25]},
    },
    "gated": lambda model, folder: {"adapter": adapter_of(model, folder)},
    "safelora": lambda model, folder: {"adapter": adapter_of(model, folder), "cosine": 1.0},
    "steering": lambda model, folder: {"strengths": [1.0]},
    "threshold": lambda model, folder: {},
}
"""Settings of each remedy for a tiny model."""


def test_every_remedy_has_a_case() -> None:
    assert set(CASES) == set(plug_files("remedies"))


@pytest.mark.parametrize("name", CASES)
def test_what_is_saved_and_loaded_says_the_same(name: str, style: Style, tmp_path: Path) -> None:
    model = style.make_model(1)
    subject = TinySubject(model, style.template, reference=style.make_model(2))
    plain = first_logits(model, style.template, TRAIN.benign)
    firsts = first_logits(model, style.template, [*DEV.harmful, *DEV.benign]).argmax(-1)
    subject.opening = tuple(firsts.unique().tolist())
    module, settings = find_plug("remedies", {"name": name, **CASES[name](model, tmp_path / "a")})
    candidates = module.fit(settings, subject, TRAIN, DEV)
    assert candidates
    mixed = [TRAIN.harmful[0], TRAIN.benign[1], DEV.ordinary[2]]
    for number, (remedy, facts) in enumerate(candidates):
        assert remedy.name == name and remedy.form == form_of(module, settings)
        save_remedy(remedy, tmp_path / str(number), {"facts": facts})
        with remedied(model, remedy):
            said = generated(model, style.template, mixed)
            logits = first_logits(model, style.template, TRAIN.benign)
        with remedied(model, load_remedy(tmp_path / str(number), model)):
            assert generated(model, style.template, mixed) == said
            again = first_logits(model, style.template, TRAIN.benign)
            torch.testing.assert_close(again, logits, atol=1e-5, rtol=1e-5)
        assert not torch.allclose(logits, plain, atol=1e-4), "the remedy changes nothing"
    assert torch.equal(first_logits(model, style.template, TRAIN.benign), plain)


def test_gated_candidates_of_one_strength_are_generated_once_and_say_what_they_would(
    style: Style, tmp_path: Path
) -> None:
    """The rates of each candidate are those of a run with its gate."""
    model = style.make_model()
    module, settings = find_plug("remedies", {"name": "steering", "strengths": [1.0]})
    candidates = module.fit(settings, TinySubject(model, style.template), TRAIN, DEV)
    assert len({row.remedy.gate.threshold for row in candidates}) > 1
    engine = TransformersEngine(model, style.template, name="tiny", batch_size=4, device="cpu")
    prompts, sampling = [p for part in DEV for p in part], Sampling(max_new_tokens=6)
    dev = Measuring(Untreated(tmp_path, "key"), engine, RefusalJudge(), prompts, sampling)
    plain = [outcome.completion.text for outcome in dev.untreated()]
    assert len(dev.rows(candidates)) == len(candidates)
    name = remedy_id(candidates[0].remedy._replace(gate=None))
    made = {file.name for file in (tmp_path / "dev").glob("*.jsonl")}
    assert {f"{name}.jsonl", "untreated.jsonl"} <= made
    assert len({one.partition(".")[0] for one in made} - {"verdicts"}) == 2
    for remedy, _ in candidates[:1] + candidates[-1:]:
        with remedied(model, remedy._replace(gate=None)):
            changed = dev.outcomes(name, "again")
        found = [outcome.completion.text for outcome in dev.behind(remedy.gate, changed)]
        with remedied(model, remedy):
            said = {c.prompt_id: c.text for c in engine.complete(prompts, sampling)}
        assert found == [said[prompt.id] for prompt in prompts]
        assert found != plain and found != [outcome.completion.text for outcome in changed]
