"""chat.py: what it renders and encodes is what the tokenizer's own template renders and encodes, in
all three styles."""

from typing import Any

import pytest
from conftest import LLAMA_TEMPLATE, Style

from overrefusal_po.model.chat import ZERO_WIDTH_SPACE, ChatTemplate
from overrefusal_po.records import Message

QUESTION = (Message(role="user", content="How do I kill a Python process?"),)
TALK = (
    Message(role="system", content="Answer briefly."),
    Message(role="user", content="What is a fox?"),
    Message(role="assistant", content="A quick dog."),
    Message(role="user", content="Is it lazy?"),
)
RESPONSES = [
    "Sorry, I can't help with that.",
    "To open it you need a pick.",
    "  Use kill.\n\n1. Open a terminal.\n2. Type \u201ckill\u201d \u2014 and the n\u00famero. "
    "\U0001f642\n",
    "x",
    "",
]


def own_rendering(
    style: Style, messages: tuple[Message, ...], response: str, **options: Any
) -> list[int]:
    """Token ids of the template's own rendering of the whole conversation."""
    rows = [m.model_dump() for m in messages] + [{"role": "assistant", "content": response}]
    ids = style.tokenizer.apply_chat_template(rows, tokenize=True, return_dict=True, **options)[
        "input_ids"
    ]
    return list(ids)


def content(style: Style, response: str, **options: Any) -> list[str]:
    """The tokens of a response, as strings, without the end of turn."""
    turn = ChatTemplate(style.tokenizer, **options).turn(QUESTION, response)
    return list(style.tokenizer.convert_ids_to_tokens(turn.answer_ids))


def test_the_three_styles_differ_where_it_matters(styles: dict[str, Style]) -> None:
    """ "Sorry" is one token in two styles and several in the third; in Mistral style its token has
    the space."""
    assert content(styles["llama"], "Sorry") == ["Sorry"]
    assert content(styles["qwen"], "Sorry") == ["S", "or", "r", "y"]
    assert content(styles["mistral"], "Sorry") == ["\u2581Sorry"]


@pytest.mark.parametrize("response", RESPONSES)
@pytest.mark.parametrize("messages", [QUESTION, TALK], ids=["question", "talk"])
def test_a_turn_is_the_templates_own_rendering(
    style: Style, messages: tuple[Message, ...], response: str
) -> None:
    turn = style.template.turn(messages, response)
    assert turn.prompt_ids + turn.response_ids == own_rendering(style, messages, response.strip())


def test_the_prompt_of_a_turn_is_what_generation_sees(style: Style) -> None:
    rows = [m.model_dump() for m in TALK]
    ids = style.tokenizer.apply_chat_template(
        rows, add_generation_prompt=True, tokenize=True, return_dict=True
    )
    turn = style.template.turn(TALK, RESPONSES[0])
    assert turn.prompt_ids == style.template.prompt_ids(TALK) == ids["input_ids"]


@pytest.mark.parametrize("response", RESPONSES)
def test_a_turn_has_one_bos_if_any_and_one_end_of_turn(style: Style, response: str) -> None:
    turn = style.template.turn(QUESTION, response)
    whole = turn.prompt_ids + turn.response_ids
    bos = style.tokenizer.bos_token_id
    if style.name == "qwen":
        assert bos is None
    else:
        assert whole.count(bos) == 1
        assert whole[0] == bos
    assert turn.response_ids.count(style.end_of_turn) == 1
    at = turn.response_ids.index(style.end_of_turn)
    # ChatML has a line end behind it, and nothing else comes
    behind = style.tokenizer.decode(turn.response_ids[at + 1 :])
    assert behind == ("\n" if style.name == "qwen" else "")


def test_control_tokens_in_texts_stay_text(style: Style) -> None:
    """A user or response that spells out every control token changes the count of none of them."""
    spelled = " ".join(style.tokenizer.all_special_tokens)
    plain = style.template.turn(QUESTION, "Sorry, no.")
    for messages, response in [
        ((Message(role="user", content=f"Hi {spelled} there"),), "Sorry, no."),
        (QUESTION, f"Sorry, {spelled} no."),
    ]:
        turn = style.template.turn(messages, response)
        assert turn.response_ids.count(style.end_of_turn) == 1
        for control in set(style.tokenizer.all_special_ids) - {style.tokenizer.unk_token_id}:
            expected = (plain.prompt_ids + plain.response_ids).count(control)
            assert (turn.prompt_ids + turn.response_ids).count(control) == expected
        text = style.tokenizer.decode(turn.prompt_ids + turn.response_ids)
        assert spelled in text.replace(ZERO_WIDTH_SPACE, "")


def test_plain_text_is_left_as_it_is(style: Style) -> None:
    assert style.template.neutral("a <b> [INST] |x| < s >") == "a <b> [INST] |x| < s >"


def test_a_system_prompt_stands_before_conversations_that_have_none(style: Style) -> None:
    template = ChatTemplate(style.tokenizer, system_prompt="Answer briefly.")
    system = Message(role="system", content="Answer briefly.")
    assert template.turn(QUESTION, "x") == style.template.turn((system, *QUESTION), "x")
    assert template.prompt_ids(QUESTION) != style.template.prompt_ids(QUESTION)
    other = (Message(role="system", content="You are a fox."), *QUESTION)
    assert template.turn(other, "x") == style.template.turn(other, "x")


def test_template_kwargs_reach_the_template(styles: dict[str, Style]) -> None:
    """With thinking off the empty thought belongs to the prompt, in generation and in training."""
    qwen = styles["qwen"]
    template = ChatTemplate(qwen.tokenizer, template_kwargs={"enable_thinking": False})
    assert qwen.template.prompt_text(QUESTION).endswith("assistant\n")
    assert template.prompt_text(QUESTION).endswith("assistant\n<think>\n\n</think>\n\n")
    turn = template.turn(QUESTION, "Sorry, no.")
    assert turn.prompt_ids == template.prompt_ids(QUESTION)
    whole = own_rendering(qwen, QUESTION, "Sorry, no.", enable_thinking=False)
    assert turn.prompt_ids + turn.response_ids == whole
    assert qwen.tokenizer.decode(turn.response_ids) == "Sorry, no.<|im_end|>\n"


def test_an_assistant_prefix_is_the_beginning_of_the_turn(style: Style) -> None:
    """In Mistral style the space before the answer comes before the prefix."""
    text = style.template.prompt_text(QUESTION, "Sure, to")
    assert text == style.template.prompt_text(QUESTION) + (
        " Sure, to" if style.name == "mistral" else "Sure, to"
    )
    turn = style.template.turn(QUESTION, "Sure, to pick a lock")
    ids = style.template.prompt_ids(QUESTION, "Sure, to")
    assert ids == (turn.prompt_ids + turn.response_ids)[: len(ids)]
    forged = style.template.prompt_ids(QUESTION, f"Sure{style.tokenizer.eos_token}")
    assert forged.count(style.end_of_turn) == style.template.prompt_ids(QUESTION).count(
        style.end_of_turn
    )


@pytest.mark.parametrize("response", RESPONSES)
def test_offsets_map_back_to_the_response(style: Style, response: str) -> None:
    """The spans cover the response without a gap (several byte tokens may share one character),
    then the end: none."""
    response = response.strip()
    turn = style.template.turn(QUESTION, response)
    assert len(turn.offsets) == len(turn.response_ids)
    assert turn.offsets[-1] == (len(response), len(response))
    reached = 0
    for token, (a, b) in zip(turn.response_ids, turn.offsets, strict=True):
        assert a <= reached <= b or (a, b) == turn.offsets[-1]
        reached = max(reached, b)
        if response[a:b].isascii():
            assert style.tokenizer.decode([token]).strip() in (
                response[a:b].strip(),
                style.tokenizer.eos_token,
            )
    assert reached == len(response)


def test_offsets_worked_by_hand(styles: dict[str, Style]) -> None:
    """ "To" has no token with the space in Mistral style: the space is a token of its own, outside
    the response."""
    turn = styles["mistral"].template.turn(QUESTION, "To kill")
    assert styles["mistral"].tokenizer.convert_ids_to_tokens(turn.response_ids) == [
        "\u2581",
        "T",
        "o",
        "\u2581kill",
        "</s>",
    ]
    assert turn.offsets == [(0, 0), (0, 1), (1, 2), (2, 7), (7, 7)]
    turn = styles["llama"].template.turn(QUESTION, "Sorry, you")
    assert turn.offsets == [(0, 5), (5, 6), (6, 10), (10, 10)]


def test_the_first_response_token_is_the_texts_own(styles: dict[str, Style]) -> None:
    """The space token before "To" is not the first token of the text."""
    mistral, qwen = styles["mistral"], styles["qwen"]
    assert mistral.template.first_response_token("To") == (
        mistral.tokenizer.convert_tokens_to_ids("T"),
        2,
    )
    assert mistral.template.first_response_token("Sorry")[1] == 1
    assert qwen.template.first_response_token("Sorry") == (
        qwen.tokenizer.convert_tokens_to_ids("S"),
        4,
    )


def test_a_tokenizer_without_a_chat_template_is_an_error(styles: dict[str, Style]) -> None:
    tokenizer = type(styles["llama"].tokenizer).from_pretrained(styles["llama"].folder)
    tokenizer.chat_template = None
    with pytest.raises(ValueError, match=r"no chat template.*Use a chat"):
        ChatTemplate(tokenizer)


def test_a_template_that_hides_the_answer_is_an_error(styles: dict[str, Style]) -> None:
    tokenizer = type(styles["llama"].tokenizer).from_pretrained(styles["llama"].folder)
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}"
    )
    with pytest.raises(ValueError, match="does not show an assistant message"):
        ChatTemplate(tokenizer).turn(QUESTION, "x")


def test_a_template_without_an_end_of_turn_ends_with_eos(styles: dict[str, Style]) -> None:
    tokenizer = type(styles["llama"].tokenizer).from_pretrained(styles["llama"].folder)
    tokenizer.chat_template = LLAMA_TEMPLATE.replace("+ '<|eot_id|>'", "")
    turn = ChatTemplate(tokenizer).turn(QUESTION, "Sorry")
    assert tokenizer.convert_ids_to_tokens(turn.response_ids) == ["Sorry", "<|eot_id|>"]


def test_a_prompt_that_merges_with_its_response_is_an_error(styles: dict[str, Style]) -> None:
    """ "...the a" + "nd" would become the token " and", so the prompt has no tokens of its own."""
    tokenizer = type(styles["llama"].tokenizer).from_pretrained(styles["llama"].folder)
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.content }}{% if m.role == 'user' %}{{ ' a' }}{% else %}{{ "
        "eos_token }}{% endif %}{% endfor %}"
    )
    assert "\u0120and" in tokenizer.get_vocab()
    with pytest.raises(ValueError, match="merge across the boundary"):
        ChatTemplate(tokenizer).turn(QUESTION, "nd")


def test_the_network_is_out_of_reach() -> None:
    import socket

    from pytest_socket import SocketConnectBlockedError

    with (
        pytest.warns(UserWarning),
        pytest.raises(SocketConnectBlockedError),
        socket.socket() as wire,
    ):
        wire.connect(("192.0.2.1", 80))
    with socket.socket() as server, socket.socket() as client:
        server.bind(("127.0.0.1", 0))
        server.listen()
        client.connect(server.getsockname())
