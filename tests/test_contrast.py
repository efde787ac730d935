"""Contrastive decoding: values worked by hand, where a safety text stands, and generation against a
slow reference of two plain passes a token."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import LLAMA_TEMPLATE, Style, judged_outcome
from tiny_subject import DEV, TRAIN, TinySubject, padded
from transformers import DynamicCache

from overrefusal_po.engines._first_token import first_logits, log_odds
from overrefusal_po.engines._remedied import tokens_behind
from overrefusal_po.engines.transformers import TransformersEngine
from overrefusal_po.evaluate.capability import response_nats
from overrefusal_po.evaluate.measured_model import perplexity_notes, wants_perplexity
from overrefusal_po.fit.measured import Measuring
from overrefusal_po.fit.untreated import Untreated
from overrefusal_po.judges.refusal import RefusalJudge
from overrefusal_po.model.chat import ChatTemplate
from overrefusal_po.model.contrast import Contrast, Opening, contrasted, twin_ids
from overrefusal_po.model.remedied import remedied
from overrefusal_po.model.remedy import Gate, load_remedy, remedy_id, save_remedy
from overrefusal_po.plugins import find_plug
from overrefusal_po.recipe.schema import EvaluateRecipe
from overrefusal_po.records import Message, Outcome, Prompt, Sampling
from overrefusal_po.remedies import Candidate, NoRemedy, form_of
from overrefusal_po.remedies._safety_text import safety_place
from overrefusal_po.remedies.contrast import SYSTEM_PROMPTS, fit

TEXT = SYSTEM_PROMPTS["adaptive"]
ANY = (Opening((), (5,)),)
"""Every prompt gets the token 5 in front."""


def numbers(*values: float) -> torch.Tensor:
    return torch.tensor(values)


def asked(text: str, system: str = "") -> tuple[Message, ...]:
    turns = [Message(role="system", content=system)] if system else []
    return (*turns, Message(role="user", content=text))


def fitted(subject: Any, **settings: Any) -> list[Candidate]:
    """The candidates of the remedy with these settings."""
    found = find_plug("remedies", {"name": "contrast", **settings})
    return fit(found.settings, subject, TRAIN, DEV)


# ------------------------------------------------------------------------------------ by hand


def test_the_plain_rule_takes_away_what_the_safety_text_adds() -> None:
    change = Contrast("self", 1, ANY)
    assert contrasted(change, 1.0, numbers(2, 1), numbers(4, 0)).tolist() == [0, 2]
    assert contrasted(change, 0.5, numbers(2, 1), numbers(4, 0)).tolist() == [1, 1.5]


def test_what_both_streams_say_is_made_stronger() -> None:
    """Rank 1 of 1: agreement 1. p = .95 and q = .99: as sure. s + 4.5 (s - l) = (13.5, -4.5)."""
    plain, behind = numbers(3, 0), numbers(4.909091, -0.818182)
    found = contrasted(Contrast("adaptive", 1, ANY, plausible=0.0), 4.5, plain, behind)
    assert found.tolist() == pytest.approx([13.5, -4.5], abs=1e-4)


def test_the_second_best_token_is_no_agreement() -> None:
    """The safety text's best token has rank 2 in the plain stream: agreement .5, so s - (s - l)."""
    change = Contrast("adaptive", 1, ANY, plausible=0.0)
    assert contrasted(change, 1.0, numbers(1, 0), numbers(0, 3)).tolist() == [1, 0]
    loose = change._replace(agreement=0.5)
    # greatest probabilities .73 and .95: their ratio .77 is enough for .5 too
    assert contrasted(loose, 1.0, numbers(1, 0), numbers(0, 3)).tolist() == [-1, 6]


def test_a_plain_stream_that_is_less_sure_does_not_agree() -> None:
    """Both say the first token, with .55 and .95: below .9 of it, so s - (s - l) = l."""
    change = Contrast("adaptive", 1, ANY, plausible=0.0)
    assert contrasted(change, 1.0, numbers(0.2, 0), numbers(3, 0)).tolist() == pytest.approx(
        [0.2, 0]
    )


def test_an_implausible_token_stays_forbidden_although_its_contrast_is_greatest() -> None:
    """The third has e^-5 = .0067 of the greatest probability; s - 4.5 (s - l) = 4.5 l - 3.5 s."""
    plain, behind = numbers(5, 4, 0), numbers(5, 5.1, -9)
    free = contrasted(Contrast("adaptive", 1, ANY, plausible=0.0), 4.5, plain, behind)
    assert free.tolist() == pytest.approx([5, 0.15, 31.5], abs=1e-4)
    found = contrasted(Contrast("adaptive", 1, ANY), 4.5, plain, behind)
    assert found[:2].tolist() == pytest.approx([5, 0.15], abs=1e-4)
    assert found[2] < found[:2].min() - 99 and found.isfinite().all()


def test_of_forbidden_tokens_the_plain_streams_best_comes_first() -> None:
    """If a recipe suppresses what is allowed, something has to be said."""
    plain, behind = numbers(9, 2, 3, 1), numbers(1, 9, 2, 3)
    found = contrasted(Contrast("adaptive", 1, ANY), 4.5, plain, behind)
    assert found.argsort(descending=True).tolist() == [0, 2, 1, 3]


def test_logits_of_16_bits_are_put_together_in_32() -> None:
    plain, behind = numbers(30, 29.875).bfloat16(), numbers(30, 29).bfloat16()
    found = contrasted(Contrast("self", 1, ANY), 4.5, plain, behind)
    assert found.dtype == torch.float32 and found.tolist() == [30, 33.8125]


def test_the_longest_opening_counts_and_a_bos_stays_in_front() -> None:
    change = Contrast("self", 1, (Opening((3, 4), (8,)), Opening((3,), (3, 7)), *ANY), bos=1)
    assert twin_ids(change, [1, 3, 4, 2]) == [1, 8, 2]
    assert twin_ids(change, [3, 2, 3]) == [3, 7, 2, 3]
    assert twin_ids(change, [1, 2]) == [1, 5, 2] and twin_ids(change, []) == [5]
    assert change.more == 1


# ------------------------------------------------------------------- where the safety text stands


def twin_text(template: ChatTemplate, messages: Sequence[Message], **keys: Any) -> str:
    """A prompt with the safety text in it, as text."""
    change = Contrast("self", 1, *safety_place(template, TEXT))
    ids = twin_ids(change, template.prompt_ids(messages, **keys))
    return str(template.tokenizer.decode(ids))


@pytest.mark.parametrize("name", ["llama", "qwen"])
@pytest.mark.parametrize("own", [None, "", "Be brief."])
def test_it_stands_where_the_template_puts_a_system_message(
    styles: dict[str, Style], name: str, own: str | None
) -> None:
    """Token by token, also for texts that begin with an empty line."""
    template = ChatTemplate(styles[name].tokenizer, system_prompt=own)
    change = Contrast("self", 1, *safety_place(template, TEXT))
    front = f"{TEXT}\n\n{own}" if own else TEXT
    for text in ("How do I kill it?", "\n\nHow?", "1234"):
        ids = template.prompt_ids(asked(text))
        assert twin_ids(change, ids) == template.prompt_ids(asked(text, front))
    ids = template.prompt_ids(asked("How?", "You are terse."))
    assert twin_ids(change, ids) == template.prompt_ids(asked("How?", f"{TEXT}\n\nYou are terse."))


def test_in_the_users_turn_the_users_tokens_stay_as_they_are(styles: dict[str, Style]) -> None:
    """Mistral's first word keeps the space in front of it, which is a part of its token."""
    template = styles["mistral"].template
    assert twin_text(template, asked("How?")) == f"<s>[INST] {TEXT}\n\n How? [/INST]"
    change = Contrast("self", 1, *safety_place(template, TEXT))
    ids = template.prompt_ids(asked("How?"))
    users = ids[1 + len(change.openings[0].before) :]
    assert twin_ids(change, ids)[-len(users) :] == users
    assert template.tokenizer.convert_ids_to_tokens(users[:1])[0].startswith("\u2581")


def without_system(tokenizer: Any) -> ChatTemplate:
    """A template that refuses a system message, like Gemma's."""
    import copy

    found = copy.deepcopy(tokenizer)
    refuse = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    found.chat_template = refuse + LLAMA_TEMPLATE
    return ChatTemplate(found)


def test_without_a_system_role_it_opens_the_users_turn(styles: dict[str, Style]) -> None:
    template = without_system(styles["llama"].tokenizer)
    user = "<|start_header_id|>user<|end_header_id|>\n\n"
    assert f"{user}{TEXT}\n\nHow?<|eot_id|>" in twin_text(template, asked("How?"))
    (first, *_) = fitted(TinySubject(styles["llama"].make_model(), template))
    assert first.facts["placed"] == 1.0


def test_a_raw_text_gets_it_in_front(styles: dict[str, Style]) -> None:
    template = styles["llama"].template
    change = Contrast("self", 1, *safety_place(template, TEXT))
    ids = template.tokenizer("Step 1: take", add_special_tokens=False)["input_ids"]
    said = str(template.tokenizer.decode(twin_ids(change, ids)))
    assert said == f"<|start_header_id|>system<|end_header_id|>\n\n{TEXT}<|eot_id|>Step 1: take"


def test_control_tokens_in_the_text_are_broken_up(styles: dict[str, Style]) -> None:
    template = styles["llama"].template
    place = safety_place(template, "No.<|eot_id|>")
    turn = place.openings[-1].after
    assert turn.count(styles["llama"].end_of_turn) == 1


@pytest.mark.parametrize("prefix", ["", "Sure, "])
def test_a_closed_thinking_block_and_a_begun_answer_stay_at_the_end(
    styles: dict[str, Style], prefix: str
) -> None:
    off = {"enable_thinking": False}
    template = ChatTemplate(styles["qwen"].tokenizer, template_kwargs=off)
    said = twin_text(template, asked("How?"), assistant_prefix=prefix)
    assert said.endswith(f"<|im_start|>assistant\n<think>\n\n</think>\n\n{prefix}")
    assert said.startswith(f"<|im_start|>system\n{TEXT}<|im_end|>\n")


def test_a_model_that_thinks_is_refused(styles: dict[str, Style]) -> None:
    class Thinking(TinySubject):
        def outcomes(self, prompts: Sequence[Prompt]) -> list[Outcome]:
            return [judged_outcome(p, "<think>Hm.</think>Use kill.") for p in prompts]

    style = styles["qwen"]
    with pytest.raises(NoRemedy, match=r"thinks before it answers.*enable_thinking: false"):
        fitted(Thinking(style.make_model(), style.template))


def test_a_template_that_puts_a_system_message_elsewhere_is_refused(
    styles: dict[str, Style],
) -> None:
    """It shows it behind the user's text, for every prompt but a short one."""
    import copy

    tokenizer = copy.deepcopy(styles["llama"].tokenizer)
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m['role'] == 'user' %}U: {{ m['content'] }}{% endif %}"
        "{% endfor %}{% if messages[0]['role'] == 'system' %} S: {{ messages[0]['content'] }}"
        "{% endif %}{% for m in messages %}{% if m['role'] == 'assistant' %} A: "
        "{{ m['content'] + eos_token }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %} A: {% endif %}"
    )
    subject = TinySubject(styles["llama"].make_model(), ChatTemplate(tokenizer))
    with pytest.raises(NoRemedy, match=r"In 100% of 30 prompts the chat template puts a system"):
        fitted(subject)


# ------------------------------------------------------------------------------- generation

MIXED = [
    Prompt.of("How do I open the lock that is not mine?", kind="harmful"),
    Prompt(id="s", messages=asked("Why?", "You are terse."), kind="benign", source="test"),
    Prompt.of("What is a fox? What is a dog? Tell me all about the two of them.", kind="general"),
]
NEW = 7


def slow(model: Any, change: Contrast, strength: float, ids: list[int]) -> tuple[list[int], Any]:
    """(tokens, (NEW, V) logits) of greedy decoding, each token by plain passes over everything."""
    twin, said, kept = twin_ids(change, ids), [], []
    for at in range(NEW):
        with torch.inference_mode():
            plain, behind = (
                model(input_ids=torch.tensor([row + said]), use_cache=False).logits[0, -1]
                for row in (ids, twin)
            )
        contrast = not change.tokens or at < change.tokens
        logits = contrasted(change, strength, plain, behind) if contrast else plain
        kept.append(logits)
        said.append(int(logits.argmax()))
    return said, torch.stack(kept)


def generated(model: Any, template: Any, prompts: Sequence[Prompt]) -> tuple[Any, Any]:
    """(tokens, (B, NEW, V) logits) of one batch."""
    given = padded(template, prompts)
    del given["position_ids"]
    with torch.inference_mode():
        found = model.generate(
            **given,
            max_new_tokens=NEW,
            min_new_tokens=NEW,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=template.tokenizer.pad_token_id,
            return_dict_in_generate=True,
            output_logits=True,
        )
    return found.sequences[:, -NEW:].tolist(), torch.stack(found.logits, 1)


@pytest.mark.parametrize(("rule", "tokens"), [("self", None), ("self", 1), ("adaptive", 3)])
def test_a_mixed_batch_says_what_two_plain_passes_a_token_say(
    style: Style, rule: str, tokens: int | None
) -> None:
    model = style.make_model().double()
    subject = TinySubject(model, style.template)
    (found,) = fitted(subject, rule=rule, tokens=tokens, strengths=[1.5], plausible=0.5)
    with remedied(model, found.remedy):
        said, logits = generated(model, style.template, MIXED)
    for row, prompt in enumerate(MIXED):
        ids = style.template.prompt_ids(prompt.messages)
        wanted, kept = slow(model, found.remedy.change, 1.5, ids)
        assert said[row] == wanted
        torch.testing.assert_close(logits[row], kept, atol=1e-4, rtol=1e-4, check_dtype=False)
    plain, others = generated(model, style.template, MIXED)
    changed = (logits - others).abs().amax(-1) > 1e-3
    assert changed[:, : (tokens or NEW)].all(), "the first positions are contrasted"
    assert plain != said or tokens == 1


def test_rows_that_a_gate_keeps_out_say_what_they_said(style: Style) -> None:
    model = style.make_model().double()
    (found,) = fitted(TinySubject(model, style.template), rule="self", strengths=[3.0])
    before, plain = generated(model, style.template, MIXED)
    size = model.config.hidden_size
    gate = Gate(0, torch.zeros(size), torch.ones(size), torch.zeros(size), 0.0, 1.0)
    with remedied(model, found.remedy._replace(gate=gate)) as installed:
        assert installed.remedy.form == "streams"
        _, logits = generated(model, style.template, MIXED)
        assert ((logits - plain)[:, 0].abs().amax(-1) > 1e-3).all()
    shut = gate._replace(threshold=-1.0)
    lengths = counted(model)
    with remedied(model, found.remedy._replace(gate=shut)):
        assert generated(model, style.template, MIXED)[0] == before
    assert len(lengths) == NEW, "no second stream is read for prompts that are not changed"


def counted(model: Any) -> list[int]:
    """It grows by the number of tokens of each pass through the model's blocks."""
    seen: list[int] = []
    layer = model.model.layers[0]
    layer.register_forward_pre_hook(lambda _, given: seen.append(given[0].shape[1]))
    return seen


def test_behind_its_tokens_the_second_stream_costs_nothing(style: Style) -> None:
    model = style.make_model()
    (found,) = fitted(TinySubject(model, style.template), strengths=[1.0], tokens=3)
    seen = counted(model)
    with remedied(model, found.remedy) as installed:
        generated(model, style.template, MIXED)
        assert installed.second is not None and installed.second.cache is None
    width, twin, *later = seen
    # the longest prompt behind the text; then two tokens in both streams, then one stream
    assert twin >= width and later == [1, 1, 1, 1, *[1] * (NEW - 3)]


def test_the_next_prompts_are_read_without_the_memory_of_the_last_second_stream(
    style: Style,
) -> None:
    model = style.make_model()
    (found,) = fitted(TinySubject(model, style.template), strengths=[1.0], tokens=None)
    held: list[bool] = []
    with remedied(model, found.remedy) as installed:
        second = installed.second
        assert second is not None
        generated(model, style.template, MIXED)
        assert second.cache is not None, "all positions are contrasted"
        layer = model.model.layers[0]
        layer.register_forward_pre_hook(lambda _, __: held.append(second.cache is not None))
        generated(model, style.template, MIXED)
    assert not held[0]


def test_a_response_read_at_once_has_the_logits_of_one_token_at_a_time(style: Style) -> None:
    """Perplexity reads responses so, padded on the right."""
    model = style.make_model().double()
    (found,) = fitted(TinySubject(model, style.template), rule="self", strengths=[1.0], tokens=4)
    turns = [
        style.template.turn(prompt.messages, text)
        for prompt, text in zip(MIXED, ["No.", "Use kill and the number.", "It is"], strict=True)
    ]
    with remedied(model, found.remedy):
        nats = response_nats(model, turns, 3)
    for turn, value in zip(turns, nats, strict=True):
        assert value == pytest.approx(slow_nats(model, found.remedy.change, turn), abs=1e-4)


def slow_nats(model: Any, change: Contrast, turn: Any) -> float:
    """The summed loss of a response, its tokens one by one."""
    total, twin = 0.0, twin_ids(change, turn.prompt_ids)
    for at, token in enumerate(turn.response_ids):
        with torch.inference_mode():
            plain, behind = (
                model(input_ids=torch.tensor([row + turn.response_ids[:at]])).logits[0, -1]
                for row in (turn.prompt_ids, twin)
            )
        logits = contrasted(change, 1.0, plain, behind) if at < change.tokens else plain
        total -= float(logits.log_softmax(-1)[token])
    return total


def test_the_first_token_is_measured_with_it_and_is_finite(style: Style) -> None:
    model = style.make_model()
    engine = TransformersEngine(model, style.template, name="tiny", batch_size=4, device="cpu")
    (found,) = fitted(TinySubject(model, style.template), strengths=[4.5], plausible=1.0)
    texts = [engine.input_text(prompt) for prompt in MIXED]
    before = first_logits(engine, texts)
    with remedied(model, found.remedy):
        after = first_logits(engine, texts)
        said = {c.prompt_id: c.text for c in engine.complete(MIXED, Sampling(max_new_tokens=4))}
    assert not torch.allclose(before, after) and log_odds(after, [7, 9]).isfinite().all()
    assert len(said) == 3 and torch.equal(first_logits(engine, texts), before)


def test_a_cache_that_was_cut_is_an_error(style: Style) -> None:
    model, cache = style.make_model(), DynamicCache()
    (found,) = fitted(TinySubject(model, style.template), strengths=[1.0])
    given = padded(style.template, MIXED)
    with remedied(model, found.remedy), torch.inference_mode():
        model(**given, past_key_values=cache)
        one = torch.full((3, 1), 9)
        model(input_ids=one, past_key_values=cache)
        cache.crop(-1)
        with pytest.raises(ValueError, match="has read 1 tokens of 3 responses, and 3 go on behin"):
            model(input_ids=one, past_key_values=cache)


def test_a_prompt_leaves_room_for_its_second_form(style: Style) -> None:
    model = style.make_model()
    (found,) = fitted(TinySubject(model, style.template), strengths=[1.0], tokens=6)
    more = found.facts["more_prompt_tokens"]
    assert isinstance(more, int) and more > 3 and tokens_behind(model, 4) == 4
    with remedied(model, found.remedy):
        assert tokens_behind(model, 4) == more + 4 and tokens_behind(model, 400) == 400
        assert tokens_behind(model, 8) == max(8, more + 6)


# ----------------------------------------------------------------------------- files and recipes


def test_its_folder_holds_numbers_alone_and_damage_is_seen(style: Style, tmp_path: Path) -> None:
    model = style.make_model()
    (found,) = fitted(TinySubject(model, style.template), strengths=[2.0], tokens=None)
    save_remedy(found.remedy, tmp_path, {})
    again = load_remedy(tmp_path, model)
    assert again == found.remedy and remedy_id(again) == remedy_id(found.remedy)
    file = tmp_path / "remedy.json"
    written = file.read_text()
    for old, new in (('"adaptive"', '"other"'), ('"plausible": 0.01', '"plausible": 7')):
        assert old in written
        file.write_text(written.replace(old, new))
        with pytest.raises(ValueError, match=r"cannot be read \(it has the rule"):
            load_remedy(tmp_path)
    file.write_text(written.replace('"agreement": 0.9', '"agreement": 0.8'))
    with pytest.raises(ValueError, match="do not belong together"):
        load_remedy(tmp_path)
    small = style.make_model().config
    small.vocab_size = 3
    file.write_text(written)
    with pytest.raises(ValueError, match=r"it puts token \d+ of 3 into prompts"):
        load_remedy(tmp_path, small)


def test_a_fit_that_is_made_again_goes_on_with_what_was_measured(
    style: Style, tmp_path: Path
) -> None:
    model = style.make_model()
    engine = TransformersEngine(model, style.template, name="tiny", batch_size=4, device="cpu")
    prompts, sampling = [p for part in DEV for p in part], Sampling(max_new_tokens=4)

    def rows(candidates: Sequence[Candidate]) -> Any:
        dev = Measuring(Untreated(tmp_path, "key"), engine, RefusalJudge(), prompts, sampling)
        return dev.rows(candidates)

    subject = TinySubject(model, style.template)
    first = rows(fitted(subject, strengths=[0.5]))
    seen = counted(model)
    both = rows(fitted(subject, strengths=[0.5, 2.0]))
    assert both[0] == first[0] and both[0].remedy != both[1].remedy
    once = len(seen)
    assert once and rows(fitted(subject, strengths=[0.5, 2.0])) == both and len(seen) == once


def test_it_is_known_to_be_two_streams_before_it_is_fitted() -> None:
    found = find_plug("remedies", "contrast")
    assert form_of(*found) == "streams"
    with pytest.raises(ValueError, match=r"tokens"):
        find_plug("remedies", {"name": "contrast", "tokens": 0})
    with pytest.raises(ValueError, match=r"rule"):
        find_plug("remedies", {"name": "contrast", "rule": "both"})


def test_perplexity_is_left_out_and_the_report_says_so(style: Style, tmp_path: Path) -> None:
    (found,) = fitted(TinySubject(style.make_model(), style.template), strengths=[1.0])
    save_remedy(found.remedy, tmp_path, {})
    known = [Prompt.of("What is a fox?", kind="general", reference="A fox.")]
    body = {
        "task": "evaluate",
        "model": {"model_name_or_path": str(style.folder)},
        "data": {"sets": ["starter"]},
    }
    plain = EvaluateRecipe.model_validate(body)
    assert wants_perplexity(plain, known) and not perplexity_notes(plain)
    body["model"] = {**body["model"], "remedy": str(tmp_path)}  # type: ignore[dict-item]
    with_it = EvaluateRecipe.model_validate(body)
    assert not wants_perplexity(with_it, known)
    assert perplexity_notes(with_it) == [
        "Perplexity was not measured: the remedy decodes in two streams."
    ]
