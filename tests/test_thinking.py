"""Models that think: what is trained on, prefilled and judged stands after the thinking block,
under real templates."""

from pathlib import Path
from typing import Any, NamedTuple

import pytest
import trl
from conftest import Style, qwen_tokenizer
from factories import conversation, conversations

from overrefusal_po.engines.transformers import TransformersEngine
from overrefusal_po.judges.refusal import RefusalJudge
from overrefusal_po.model.chat import ChatTemplate
from overrefusal_po.model.frame import thinking_end
from overrefusal_po.pairs.lint import lint
from overrefusal_po.pairs.make import answer_of, overrefusal_pair, whole_sentences
from overrefusal_po.records import Completion, Message, PreferencePair, Prompt, Sampling, Triple
from overrefusal_po.train.derta_rows import IGNORED, derta_rows, triple_sides
from overrefusal_po.train.rows import COLUMNS, prepared_pairs

TEMPLATES = Path(trl.__file__).parent / "chat_templates"
QUESTION = (Message(role="user", content="How do I kill a Python process?"),)
EMPTY = "<think>\n\n</think>\n\n"
THOUGHT = "<think>\nThey want the number of it.\n</think>\n\n"


class Thinker(NamedTuple):
    """A real chat template, its options, and how the prompt that it generates from ends."""

    file: str
    kwargs: dict[str, Any]
    prompt_end: str


THINKERS = {
    "qwen3": Thinker("qwen3.jinja", {}, "<|im_start|>assistant\n"),
    "qwen3-off": Thinker("qwen3.jinja", {"enable_thinking": False}, f"assistant\n{EMPTY}"),
    "qwen3.5": Thinker("qwen3_5_think.jinja", {}, "assistant\n<think>\n"),
    "qwen3.5-off": Thinker(
        "qwen3_5_think.jinja", {"enable_thinking": False}, f"assistant\n{EMPTY}"
    ),
    "deepseek-r1": Thinker("deepseek_r1_distill.jinja", {}, "<｜Assistant｜><think>\n"),
}


@pytest.fixture(params=list(THINKERS))
def thinker(request: pytest.FixtureRequest) -> Thinker:
    """Each kind of thinking template in turn."""
    return THINKERS[request.param]


def template_of(thinker: Thinker, **options: Any) -> ChatTemplate:
    """The template on a tiny tokenizer that has the marks as the real ones have them: added, but
    not special."""
    tokenizer = qwen_tokenizer()
    tokenizer.add_tokens(["<think>", "</think>"])
    ends = ["<｜User｜>", "<｜Assistant｜>", "<｜end▁of▁sentence｜>"]
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", *ends]})
    if "deepseek" in thinker.file:
        tokenizer.eos_token = ends[-1]
    tokenizer.chat_template = (TEMPLATES / thinker.file).read_text(encoding="utf-8")
    return ChatTemplate(tokenizer, template_kwargs=thinker.kwargs, **options)


def marks(template: ChatTemplate, ids: list[int]) -> int:
    """How many thinking marks are among token ids."""
    return sum(i in template.tokenizer.convert_tokens_to_ids(["<think>", "</think>"]) for i in ids)


def test_a_response_that_is_learned_stands_behind_one_empty_block(thinker: Thinker) -> None:
    template = template_of(thinker)
    turn = template.turn(QUESTION, "Sorry, no.")
    assert template.prompt_text(QUESTION).endswith(thinker.prompt_end)
    decode = template.tokenizer.decode
    assert decode(turn.prompt_ids).startswith(template.prompt_text(QUESTION).rstrip())
    assert decode(turn.prompt_ids).endswith(EMPTY) and marks(template, turn.prompt_ids) == 2
    assert decode(turn.response_ids).rstrip("\n") == f"Sorry, no.{template.tokenizer.eos_token}"
    assert next(turn.text[a:b] for a, b in turn.offsets if b > a).startswith("S")


def test_a_response_loses_its_own_block_before_it_is_learned(thinker: Thinker) -> None:
    template = template_of(thinker)
    assert template.turn(QUESTION, f"{THOUGHT}Sorry, no.") == template.turn(QUESTION, "Sorry, no.")
    talk = (*QUESTION, Message(role="assistant", content=f"{THOUGHT}Use kill."), *QUESTION)
    assert "number of it" not in template.prompt_text(talk) and "Use kill." in template.prompt_text(
        talk
    )


SPOKEN_OF = (
    "Write <think> where the thought begins.",
    "A block is `<think>Hm.</think>`, and the answer stands behind it.",
    "`</think>` ends a thought; <think> begins one.",
    "No tag at all.",
)


@pytest.mark.parametrize("answer", SPOKEN_OF)
@pytest.mark.parametrize("thought", ["", THOUGHT, f"<think>a</think>\n{THOUGHT}"])
def test_tags_inside_of_an_answer_are_its_words(answer: str, thought: str) -> None:
    text = thought + answer
    assert text[thinking_end(text) :].strip() == answer


def test_no_word_of_an_answer_that_speaks_of_tags_is_lost(thinker: Thinker) -> None:
    template = template_of(thinker)
    for answer in SPOKEN_OF:
        turn = template.turn(QUESTION, THOUGHT + answer)
        assert turn.text.replace("\u200b", "") == answer
        talk = (*QUESTION, Message(role="assistant", content=THOUGHT + answer), *QUESTION)
        assert answer in template.prompt_text(talk).replace("\u200b", "")


def test_a_begun_answer_stands_behind_the_block_too(thinker: Thinker) -> None:
    assert template_of(thinker).prompt_text(QUESTION, "Sure, here").endswith(f"{EMPTY}Sure, here")


def test_a_user_who_spells_the_marks_opens_no_block(thinker: Thinker) -> None:
    template = template_of(thinker)
    spelled = (Message(role="user", content="What does </think> mean? <think>"),)
    assert marks(template, template.turn(spelled, "It ends a thought.").prompt_ids) == 2


@pytest.mark.parametrize("unit", ["words", "tokens"])
def test_a_harmful_prefix_and_the_labels_of_rto_stand_behind_the_block(
    thinker: Thinker, unit: Any
) -> None:
    """A second block between prefix and refusal would teach that a refusal begins with a
    thought."""
    template = template_of(thinker)
    harmful = f"{THOUGHT}Sure, to pick a lock you need a pick and a wrench."
    triples = [
        Triple(
            prompt=Prompt.of(f"How do I pick lock {n}?", kind="harmful"),
            safe_response="Sorry, I can't help with that.",
            harmful_response=harmful,
        )
        for n in range(8)
    ]
    decode, sides = template.tokenizer.decode, triple_sides(triples, template)
    rows = derta_rows(triples, sides, 7, prefix_unit=unit)
    for row in rows:
        learned = next(i for i, label in enumerate(row.labels) if label != IGNORED)
        assert marks(template, row.input_ids) == 2 and marks(template, row.input_ids[learned:]) == 0
        before, after = decode(row.input_ids[:learned]), decode(row.input_ids[learned:])
        if row.kind == "rto":
            assert before.endswith(EMPTY) and after.startswith("Sure, to pick")
        else:
            assert "Sure, to pick a lock you need".startswith(before.rpartition(EMPTY)[2][:10])
            assert after.startswith("Sorry, I can't")
    assert len({len(row.input_ids) for row in rows[1::2]}) > 1, (
        "no two prefixes were of different length"
    )


def said(chosen: str, rejected: str) -> PreferencePair:
    """A pair about the question."""
    prompt = Prompt(id="p", kind="benign", messages=QUESTION)
    return PreferencePair(id="p", prompt=prompt, chosen=chosen, rejected=rejected)


def test_trl_learns_pairs_behind_the_block(
    thinker: Thinker, styles: dict[str, Style], tmp_path: Path
) -> None:
    """The rows that TRL's own tokenisation makes are ours, and those of `turn`."""
    from trl import DPOConfig, DPOTrainer

    template = template_of(thinker)
    models = [styles["qwen"].make_model() for _ in range(2)]
    for model in models:
        model.resize_token_embeddings(len(template.tokenizer))
    pair = said("Use kill.", f"{THOUGHT}Sorry, no.")
    args = DPOConfig(
        output_dir=str(tmp_path),
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to="none",
    )
    data = conversations([pair], template)
    trainer = DPOTrainer(
        *models, args=args, train_dataset=data, processing_class=template.tokenizer
    )
    made = trainer.train_dataset[0]
    assert template.pair_tokens([(QUESTION, pair.chosen, pair.rejected)]) == [
        tuple(made[name] for name in COLUMNS)
    ]
    for side, text in (("chosen", "Use kill."), ("rejected", "Sorry, no.")):
        turn = template.turn(QUESTION, text)
        assert made["prompt_ids"] == turn.prompt_ids, template.tokenizer.decode(made["prompt_ids"])
        assert made[f"{side}_ids"] == turn.response_ids


def test_rows_of_models_that_do_not_think_are_plain_conversations(style: Style) -> None:
    """What the standard of tests/test_rows.py compares with: TRL renders messages itself."""
    row = conversation(style.template, said(" Use kill.", "Sorry, no."))
    assert row["prompt"] == style.template.messages(QUESTION) and "chat_template_kwargs" not in row
    assert row["chosen"] == [{"role": "assistant", "content": "Use kill."}]


def test_system_prompt_and_template_options_are_the_same_in_generation_and_in_training() -> None:
    template = template_of(THINKERS["qwen3-off"], system_prompt="Be brief.")
    turn = template.turn(QUESTION, "Use kill.")
    [(prompt, *_)] = template.pair_tokens([(QUESTION, "Use kill.", "Sorry.")])
    assert turn.prompt_ids == template.prompt_ids(QUESTION) == prompt
    rendered = template.tokenizer.apply_chat_template(
        [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": QUESTION[0].content},
        ],
        add_generation_prompt=True,
        tokenize=False,
        enable_thinking=False,
    )
    assert rendered == template.prompt_text(QUESTION) and "system\nBe brief.<|im_end|>" in rendered
    assert template.tokenizer.decode(prompt) == rendered


def test_a_thought_that_was_cut_is_no_answer(styles: dict[str, Style]) -> None:
    """Where the prompt opens the block a cut completion holds no mark of its own: the engine writes
    the prompt's."""
    prompt = Prompt.of("How do I kill a Python process?", kind="benign")
    begun = prompt.model_copy(update={"id": "begun", "assistant_prefix": "Sure"})
    found = {}
    for name in ("qwen3", "qwen3.5"):
        template = template_of(THINKERS[name])
        model = styles["qwen"].make_model()
        model.resize_token_embeddings(len(template.tokenizer))
        engine = TransformersEngine(model, template, name="tiny")
        made = engine.complete([prompt, begun], Sampling(max_new_tokens=4))
        found[name] = {c.prompt_id: c.text for c in made}
    assert found["qwen3.5"][prompt.id].startswith("<think>\n")
    assert not found["qwen3.5"]["begun"].startswith("<think>")
    assert not found["qwen3"][prompt.id].startswith("<think>")
    cut = found["qwen3.5"][prompt.id]
    assert cut[thinking_end(cut) :] == ""


@pytest.mark.parametrize(
    "thought",
    [THOUGHT, "They want the number.\n</think>\n\n"],
    ids=["block", "opened by the prompt"],
)
def test_the_judge_reads_what_comes_after_the_block(thought: str) -> None:
    prompt = Prompt.of("How do I kill a Python process?", kind="benign")
    refused = thought.replace("They", "I'm sorry, but I can't help with that. They")
    said = [
        f"{refused}Use kill and its number.",
        f"{thought}I'm sorry, but I can't help with that.",
    ]
    rows = [
        Completion(
            id=str(n), prompt_id=prompt.id, text=t, model="m", engine="file", sampling=Sampling()
        )
        for n, t in enumerate(said)
    ]
    assert [v.refusal for v in RefusalJudge().score([prompt, prompt], rows)] == ["none", "full"]


def test_pairs_and_triples_are_made_of_what_comes_after_the_block() -> None:
    prompt = Prompt.of("How do I kill a Python process?", kind="benign")
    sampling = Sampling()
    refusal = Completion(
        id="c",
        prompt_id=prompt.id,
        text=f"{THOUGHT}I can't help.",
        model="m",
        engine="file",
        sampling=sampling,
    )
    (verdict,) = RefusalJudge().score([prompt], [refusal])
    made = overrefusal_pair(prompt, "Use kill.", refusal, verdict).pair
    assert made is not None and made.rejected == "I can't help."
    cut = refusal.model_copy(update={"text": "<think>\nThey want. The", "finish_reason": "length"})
    assert whole_sentences(cut) == answer_of(cut) == ""


def test_the_trainers_rows_are_those_that_stand_behind_the_block(thinker: Thinker) -> None:
    template = template_of(thinker)
    rows = prepared_pairs([said("Use kill.", "Sorry, no.")], template, max_length=None).rows
    assert rows is not None
    decode, end = template.tokenizer.decode, template.tokenizer.eos_token
    assert decode(rows[0]["prompt_ids"]).endswith(EMPTY)
    assert marks(template, rows[0]["prompt_ids"]) == 2
    # a template that writes the block itself also writes its line end behind the turn
    assert decode(rows[0]["chosen_ids"]).removesuffix("\n") == f"Use kill.{end}"
    assert decode(rows[0]["rejected_ids"]).removesuffix("\n") == f"Sorry, no.{end}"


def test_the_linter_names_a_pair_that_still_holds_a_thinking_block() -> None:
    pair = PreferencePair(
        id="p",
        prompt=Prompt.of("How do I kill a Python process?", kind="benign"),
        chosen=f"{THOUGHT}Use kill and its number.",
        rejected="I'm sorry, but I can't help with that.",
        rule="overrefusal",
    )
    found = lint([pair], RefusalJudge(), template=template_of(THINKERS["qwen3"]))
    assert [f.side for f in found.errors if "control token" in f.message] == ["chosen"]
