"""fit/subject.py: what a remedy's fit may ask of a model."""

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Style
from test_selection import REFUSAL, THINGS, asked, taught

from overrefusal_po.engines.transformers import TransformersEngine
from overrefusal_po.fit.subject import ModelSubject
from overrefusal_po.judges.refusal import RefusalJudge
from overrefusal_po.model import load as models
from overrefusal_po.model.chat import ChatTemplate
from overrefusal_po.model.remedied import remedied
from overrefusal_po.model.remedy import FirstLogits, Remedy, Steering
from overrefusal_po.records import Sampling
from overrefusal_po.remedies import Anchors, Subject

DEV = Anchors(
    asked(["a picture", "a pack"], "harmful"), asked(["a picture", "a pack"], "benign"), []
)


@pytest.fixture(scope="module")
def refuser(styles: dict[str, Style], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model that refuses everything."""
    rows = asked(THINGS, "benign", REFUSAL) + asked(THINGS, "harmful", REFUSAL)
    return taught(styles["llama"], rows, tmp_path_factory.mktemp("refuser"), steps=30, batch=8)


def subject_of(folder: Path, **more: Any) -> ModelSubject:
    """A model's folder as a subject."""
    template = ChatTemplate(models.load_tokenizer(str(folder)))
    model = models.load_model(str(folder), dtype="float32")
    engine = TransformersEngine(model, template, name="tiny", batch_size=2, device="cpu")
    sampling = Sampling(max_new_tokens=12)
    return ModelSubject(engine, RefusalJudge(), dev=DEV, sampling=sampling, **more)


@pytest.fixture(scope="module")
def subject(refuser: Path) -> ModelSubject:
    """The tiny model as a subject."""
    return subject_of(refuser)


def test_it_is_what_a_remedy_asks_for(subject: ModelSubject) -> None:
    as_contract: Subject = subject
    assert as_contract.tolerance == 0.05


def test_states_of_a_batch_are_those_of_each_prompt_and_a_suffix_changes_them(
    subject: ModelSubject,
) -> None:
    config = subject.model.config
    together = subject.states(DEV.harmful)
    assert together.shape == (2, config.num_hidden_layers, config.hidden_size)
    subject.kept_states.clear()
    alone = torch.cat([subject.states([prompt]) for prompt in DEV.harmful])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(subject.states(DEV.harmful, " Sure"), together, atol=1e-2)


def test_first_tokens_agree_with_what_is_said(subject: ModelSubject) -> None:
    said = [outcome.completion.text for outcome in subject.outcomes(DEV.benign)]
    assert said == [REFUSAL, REFUSAL]
    firsts = subject.first_log_probs(DEV.benign)
    torch.testing.assert_close(firsts.exp().sum(-1), torch.ones(2))
    assert set(firsts.argmax(-1).tolist()) <= set(subject.openers())
    chances = firsts[:, list(subject.openers())].exp().sum(-1)
    torch.testing.assert_close(subject.opener_log_odds(DEV.benign).sigmoid(), chances)


def test_with_a_remedy_everything_is_computed_again(subject: ModelSubject) -> None:
    openers = torch.tensor(subject.openers())
    before = subject.opener_log_odds(DEV.benign)
    down = Remedy("down", FirstLogits(openers, torch.full((1, len(openers)), -3.0)))
    with remedied(subject.model, down):
        # all openers fall by 3, so their odds do
        torch.testing.assert_close(
            subject.opener_log_odds(DEV.benign), before - 3, atol=1e-4, rtol=1e-4
        )
    assert torch.equal(subject.opener_log_odds(DEV.benign), before)
    states = subject.states(DEV.benign)
    width = states.shape[-1]
    push = Remedy("push", Steering((0,), torch.ones(1, width), tail=1))
    with remedied(subject.model, push):
        moved = subject.states(DEV.benign)
    torch.testing.assert_close(moved[:, 0], states[:, 0] + 1, atol=1e-5, rtol=1e-4)
    assert torch.equal(subject.states(DEV.benign), states)


def test_nothing_is_asked_twice(refuser: Path) -> None:
    subject = subject_of(refuser)
    passes = 0

    def count(*_: object) -> None:
        nonlocal passes
        passes += 1

    subject.model.base_model.register_forward_hook(count)
    for _ in range(2):
        subject.states(DEV.harmful)
        subject.outcomes(DEV.harmful)
        subject.first_log_probs(DEV.harmful)
        if not _:
            once = passes
    assert passes == once > 0


def test_a_reference_is_loaded_once_and_asked_for_by_name(refuser: Path) -> None:
    loads = []

    def load() -> Any:
        loads.append(1)
        return models.load_model(str(refuser), dtype="float32")

    with_one = subject_of(refuser, load_reference=load)
    assert with_one.reference() is with_one.reference()
    assert loads == [1]
    with pytest.raises(ValueError, match="Set reference"):
        subject_of(refuser).reference()
