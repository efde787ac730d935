"""capability.py: perplexity against cross entropies worked out row by row, and the harness's scores
as plain data."""

import copy
import importlib.util
import math
from typing import Any

import pytest
import torch
from conftest import Style

from overrefusal_po.evaluate.capability import (
    check_tasks,
    lm_eval_scores,
    perplexity,
    plain_scores,
    rendered,
)
from overrefusal_po.model.chat import ChatTemplate
from overrefusal_po.model.finite import NotFiniteError
from overrefusal_po.records import Prompt

ANSWERS = {
    "How do I kill a process?": "Use kill and the number of the process.",
    "What is a fox?": "A dog.",
    "Tell me how to stop a program that hangs.": "Open a terminal and type the number. Then the "
    "program stops at once.",
    "Hello": "Yes, I will tell you.",
    "What is a bank?": "It has the money.",
}


@pytest.fixture
def prompts() -> list[Prompt]:
    """Five answers of different lengths, and three prompts that have no part in it."""
    kept = [Prompt.of(text, kind="benign", reference=answer) for text, answer in ANSWERS.items()]
    return [
        *kept,
        Prompt.of("How do I open a safe?", kind="harmful", reference="Sorry, no."),
        Prompt.of("What is a lock?", kind="general"),
    ]


def hand_made(model, template, prompts) -> tuple[float, int]:
    """(nats, tokens): each token's -log p, looked up one by one, each answer alone and without
    padding."""
    nats, tokens = 0.0, 0
    for prompt in prompts:
        turn = template.turn(prompt.messages, prompt.reference)
        ids = turn.prompt_ids + turn.response_ids
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids])).logits[0].double()
        for place in range(len(turn.prompt_ids), len(ids)):
            nats -= math.log(torch.softmax(logits[place - 1], -1)[ids[place]])
            tokens += 1
    return nats, tokens


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_perplexity_is_the_cross_entropy_of_the_response_tokens(
    style: Style, prompts: list[Prompt], batch_size: int
) -> None:
    model = style.make_model()
    nats, tokens = hand_made(model, style.template, prompts[:5])
    found = perplexity(model, style.template, prompts, batch_size=batch_size)
    assert (found.tokens, found.n) == (tokens, 5)
    assert found.nats_per_token == pytest.approx(nats / tokens, rel=1e-5)
    assert found.value == pytest.approx(math.exp(nats / tokens), rel=1e-5)
    assert found.low is not None and found.high is not None and found.low < found.value < found.high


def test_no_end_of_turn_is_read_behind_an_unfinished_reference(
    styles: dict[str, Style], prompts: list[Prompt]
) -> None:
    model, template = styles["llama"].make_model(), styles["llama"].template
    cut = [prompt.model_copy(update={"unfinished": True}) for prompt in prompts[:5]]
    whole, found = (perplexity(model, template, some).tokens for some in (prompts[:5], cut))
    turns = [template.turn(prompt.messages, str(prompt.reference)) for prompt in cut]
    assert found == sum(len(turn.answer_ids) for turn in turns) == whole - 5


def test_a_model_that_knows_nothing_has_the_perplexity_of_its_vocabulary(
    styles: dict[str, Style], prompts: list[Prompt]
) -> None:
    llama = styles["llama"]
    model = llama.make_model()
    model.lm_head.weight.data.zero_()
    found = perplexity(model, llama.template, prompts)
    assert found.value == pytest.approx(len(llama.tokenizer), rel=1e-4)
    assert found.low == pytest.approx(found.high)


def test_the_interval_redraws_clusters_and_needs_two_of_them(
    styles: dict[str, Style], prompts: list[Prompt]
) -> None:
    llama = styles["llama"]
    model = llama.make_model()
    apart = perplexity(model, llama.template, prompts)
    first = prompts[0].id
    together = [p.model_copy(update={"original_id": first}) for p in prompts]
    joined = perplexity(model, llama.template, [*together[:3], *prompts[3:5]])
    assert joined.value == apart.value and (joined.low, joined.high) != (apart.low, apart.high)
    alone = perplexity(model, llama.template, together)
    assert alone.value == apart.value and alone.low is None and alone.high is None


def test_prompts_without_a_reference_answer_are_an_error(
    styles: dict[str, Style], prompts: list[Prompt]
) -> None:
    llama = styles["llama"]
    with pytest.raises(ValueError, match="none of the 2 prompts is one"):
        perplexity(llama.make_model(), llama.template, prompts[5:])


@pytest.mark.skipif(
    importlib.util.find_spec("lm_eval") is not None, reason="the harness is installed"
)
def test_without_the_harness_tasks_are_an_error_that_says_what_to_install(
    styles: dict[str, Style],
) -> None:
    with pytest.raises(ValueError, match=r"not installed.*overrefusal-po\[lm-eval\]"):
        lm_eval_scores(styles["llama"].make_model(), styles["llama"].template, ["arc_easy"])


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"system_prompt": ""},
        {"system_prompt": "Be short."},
        {"template_kwargs": {"enable_thinking": False}},
    ],
    ids=["plain", "no system", "system", "thinking off"],
)
def test_the_harness_s_items_are_rendered_as_the_evaluation_s_prompts(
    styles: dict[str, Style], options: dict[str, Any]
) -> None:
    template = ChatTemplate(styles["qwen"].tokenizer, **options)
    messages = Prompt.of("What is a fox?", kind="benign").messages
    asked = [{"role": "user", "content": "What is a fox?"}]
    assert rendered(template, asked) == template.prompt_text(messages)
    begun = [*asked, {"role": "assistant", "content": "A fox"}]
    assert rendered(template, begun, add_generation_prompt=False) == template.prompt_text(
        messages, "A fox"
    )
    assert len({rendered(template, asked), rendered(styles["qwen"].template, asked)}) == (
        2 if options else 1
    )


def test_a_task_s_description_is_left_out_where_the_template_takes_none(
    styles: dict[str, Style], caplog: pytest.LogCaptureFixture
) -> None:
    tokenizer = copy.copy(styles["mistral"].tokenizer)
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m['role'] == 'system' %}"
        "{{ raise_exception('no system role') }}{% endif %}[{{ m['role'] }}] {{ m['content'] }}\n"
        "{% endfor %}{% if add_generation_prompt %}[assistant] {% endif %}"
    )
    template = ChatTemplate(tokenizer)
    asked = [{"role": "user", "content": "What is a fox?"}]
    described = [{"role": "system", "content": "Choose one."}, *asked]
    assert rendered(template, described) == rendered(template, asked)
    assert "no system role" in caplog.text
    with pytest.raises(ValueError, match="no system role"):
        rendered(ChatTemplate(tokenizer, system_prompt="Be short."), described)


def test_the_harness_results_become_plain_scores() -> None:
    results = {
        "arc_easy": {
            "alias": "arc_easy",
            "sample_len": 40,
            "acc,none": 0.25,
            "acc_stderr,none": 0.02,
        },
        "gsm8k": {
            "alias": "gsm8k",
            "exact_match,strict-match": 0,
            "exact_match_stderr,strict-match": "N/A",
        },
    }
    assert plain_scores(results) == {
        "arc_easy": {"acc": 0.25, "acc_stderr": 0.02},
        "gsm8k": {"exact_match,strict-match": 0.0},
    }


def test_a_task_that_the_harness_does_not_know_is_named() -> None:
    def known(names: list[str]) -> list[str]:
        return [n for n in names if n == "arc_easy"]

    check_tasks(["arc_easy"], known)
    with pytest.raises(ValueError, match=r"no task 'arc_eazy'\. Give names"):
        check_tasks(["arc_easy", "arc_eazy"], known)
    with pytest.raises(ValueError, match="none was named"):
        check_tasks([], known)


def test_answers_longer_than_the_context_are_left_out_and_counted(
    styles: dict[str, Style], caplog: pytest.LogCaptureFixture
) -> None:
    llama = styles["llama"]
    model, template = llama.make_model(), llama.template
    short = Prompt.of("What is a fox?", kind="benign", reference="An animal.")
    long = Prompt.of("Tell me more.", kind="general", reference="fox " * 2000)
    alone, both = (perplexity(model, template, rows) for rows in ([short], [short, long]))
    assert (both.value, both.n) == (alone.value, 1)
    assert "1 of 2 reference answers are longer than the model's context of 512" in caplog.text
    with pytest.raises(ValueError, match="None of the 1 reference answers fits"):
        perplexity(model, template, [long])


def test_logits_that_are_not_finite_are_an_error(styles: dict[str, Style]) -> None:
    llama = styles["llama"]
    model = llama.make_model()
    model.lm_head.weight.data[5] = float("nan")
    prompt = Prompt.of("What is a fox?", kind="benign", reference="An animal.")
    with pytest.raises(NotFiniteError, match="is NaN or infinite, so the model has no perplexity"):
        perplexity(model, llama.template, [prompt])
