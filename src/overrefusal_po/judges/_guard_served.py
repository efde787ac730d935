"""A guard's prompts as token ids -> its answers, from servers that know OpenAI's plain completions.

    servers = GuardServers(settings.engine, loaded, model="my/guard", max_new_tokens=16)
    for number, answer in servers.answers({0: (prompt, ids)}): ...

The prompt is rendered and tokenised here, and its token ids are sent. So a server adds no token and
reads no control token out of a text. Of the reply, the token ids and the log-probs of the labels
count, not the text. vLLM is asked for the log-probs of the labels (`logprob_token_ids`). A server
that does not know this field shows the most likely tokens. A label that is not among them has at
most the probability of the last one, which is enough if it is next to nothing.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import ClassVar, Literal, NamedTuple

from pydantic import Field

from overrefusal_po.engines._costs import Cost
from overrefusal_po.engines._endpoints import ServerAnswer
from overrefusal_po.engines._openai_session import Drawn, Session
from overrefusal_po.engines._openai_settings import FleetSettings
from overrefusal_po.engines._openai_setup import Owner, read_api_key
from overrefusal_po.judges._guard_model import GuardAnswer, LoadedGuard
from overrefusal_po.records import Prompt, Sampling

NO_ANSWER = "the guard's servers gave no answer"
"""The beginning of `unscored` if another try may give a verdict."""

TOO_FEW_SHOWN = "the guard's server shows too few tokens"
"""The beginning of `unscored` if more `top_logprobs` may give a verdict."""

WANTED = "Serve the guard with vLLM, or with an SGLang that knows `return_token_ids`."
TOKEN_ID = re.compile(r"token_id:(\d+)")
"""How vLLM names a token if it is asked for `return_tokens_as_token_ids`."""

NEUTRAL = {"top_p": 1, "presence_penalty": 0, "frequency_penalty": 0}
PENALTY = {"repetition_penalty": 1.0}
"""Sent because servers take other values from the model's own generation_config.json."""


class ServedBy(FleetSettings):
    """Servers of the guard: vLLM or SGLang, with plain completions that take token ids. No key ever
    stands here: `api_key_env` names the variable that holds it."""

    owner: ClassVar[Owner] = Owner(
        section="guard.engine",
        plug="openai",
        fixes={
            "model": "Correct guard.engine.model",
            "logprobs": "Lower guard.engine.top_logprobs, or start the server with a higher "
            "--max-logprobs",
            "prompt": f"The prompt is a list of token ids. {WANTED}",
            "max_tokens": "Change guard.max_new_tokens",
            **dict.fromkeys(
                ("logprob_token_ids", "return_token_ids", "return_tokens_as_token_ids"), WANTED
            ),
            **dict.fromkeys(("stop_token_ids", "repetition_penalty", *NEUTRAL), WANTED),
        },
    )
    max_tokens_name: ClassVar[None] = None  # type: ignore[misc]  # plain completions know one name
    name: Literal["openai"] = "openai"
    """The engine: servers that speak OpenAI's protocol."""
    model: str | None = Field(None, min_length=1)
    """The guard's name at the servers; None: `model_name_or_path`."""
    base_url: tuple[str, ...]
    """Addresses with /v1 at their end, one or several that serve the same guard."""
    top_logprobs: int = Field(20, ge=3, le=1000)
    """The most likely tokens that a server shows for each token of the answer, if it cannot show
    the labels alone. vLLM allows 20, unless it is started with a higher --max-logprobs."""


class GuardSession(Session):
    """A session that ends if the servers refuse the first request: they would refuse all."""

    worked_before = False
    """Whether an earlier run got answers. Then the first item may be at fault."""

    def sort_in(self, drawn: Drawn) -> None:
        """As in every session. ValueError if nothing was ever answered, and trying again is no
        help."""
        if not (drawn.is_answer or drawn.retryable or self.answered or self.worked_before):
            raise ValueError(
                f"guard.engine: the servers refuse the first request ({drawn.completion.error}). "
                f"They have to take token ids as a prompt, and to say log-probs. {WANTED}"
            )
        super().sort_in(drawn)


class GuardServers:
    """A guard behind servers.

    Args:
        settings: the recipe's keys.
        loaded: the guard's tokenizer and what its files say; no weights.
        model: the guard's name at the servers.
        max_new_tokens: of an answer.
    """

    def __init__(
        self, settings: ServedBy, loaded: LoadedGuard, *, model: str, max_new_tokens: int
    ) -> None:
        self.settings, self.loaded, self.model = settings, loaded, model
        self.max_new_tokens = max_new_tokens
        self.answered = False
        """Whether a server has answered in this run."""
        self.worked_before = False
        """Whether servers answered an earlier run. They may have been others."""
        read_api_key(settings)

    def answers(
        self,
        asked: Mapping[int, tuple[Prompt, Sequence[int]]],
        spend: Callable[[Cost], None],
    ) -> Iterator[tuple[int, GuardAnswer | str]]:
        """The answer to each prompt (token ids), or why there is none, by its number, as they come.

        `spend` gets the cost of each answer before the answer.

        Raises:
            ValueError: the set-up is wrong, or a server does not say what a verdict needs.
            ServersGone: no server answers any longer.
        """
        session = GuardSession(
            self.settings,
            self.model,
            lambda prompt, sampling, number: self.body(asked[number][1]),
            work=((prompt, number) for number, (prompt, _) in asked.items()),
            sampling=Sampling(max_new_tokens=self.max_new_tokens),
        )
        session.answered, session.worked_before = self.answered, self.worked_before
        try:
            for drawn in session.results():
                spend(drawn.cost)
                number = drawn.completion.sample
                yield number, self.read(drawn, asked[number][1], answered=session.answered)
        finally:
            self.answered = session.answered
            for drawn in session.held_back:
                spend(drawn.cost)

    def body(self, ids: Sequence[int]) -> dict[str, object]:
        """The fields of a request: greedy, with the log-probs of the labels."""
        extra = {
            **PENALTY,
            "stop_token_ids": self.loaded.stop_tokens,
            "logprob_token_ids": self.loaded.labels.ids,
            "return_token_ids": True,
            "return_tokens_as_token_ids": True,
        }
        return {
            "model": self.model,
            "prompt": list(ids),
            "max_tokens": self.max_new_tokens,
            "temperature": 0,
            "logprobs": self.settings.top_logprobs,
            **NEUTRAL,
            "extra_body": extra,
        }

    def read(self, drawn: Drawn, sent: Sequence[int], *, answered: bool) -> GuardAnswer | str:
        """The guard's answer, or why there is none. ValueError if the reply does not say what a
        verdict needs. `answered`: whether a server has answered in this run; if not, a refusal may
        be one of the set-up."""
        if drawn.answer is None:
            passes = drawn.retryable or not answered
            what = NO_ANSWER if passes else "the guard's servers refuse this item"
            return f"{what} ({drawn.completion.error})"
        try:
            check_prompt(drawn.answer, sent)
            return guard_answer(drawn.answer.choice, self.loaded)
        except ValueError as error:
            raise ValueError(
                f"guard.engine.base_url {drawn.cost.answered_by}: {error} {WANTED}"
            ) from None


def check_prompt(answer: ServerAnswer, sent: Sequence[int]) -> None:
    """Raises ValueError if the server says that it read other tokens than were sent."""
    read = getattr(answer.choice, "prompt_token_ids", None)
    if isinstance(read, list):
        same, count = read == list(sent), len(read)
    else:
        count = len(sent) if answer.prompt_tokens is None else answer.prompt_tokens
        same = count == len(sent)
    if not same:
        raise ValueError(
            f"it read a prompt of {count} tokens, and {len(sent)} others were sent. So it does not "
            "take token ids as they are."
        )


def guard_answer(choice: object, loaded: LoadedGuard) -> GuardAnswer:
    """The answer in the choice of a plain completion. ValueError if it lacks token ids or
    log-probs."""
    found = getattr(choice, "logprobs", None)
    own, rows = getattr(found, "token_logprobs", None), getattr(found, "top_logprobs", None)
    if not isinstance(own, list) or not isinstance(rows, list):
        raise ValueError("it gives no log-probs of the tokens that it writes.")
    ids = reply_ids(choice, getattr(found, "tokens", None))
    if ids is None:
        raise ValueError("it does not say the ids of the tokens that it writes.")
    if ids and max(ids) >= loaded.size:
        raise ValueError(
            f"it wrote token {max(ids)}, and this guard has {loaded.size} tokens. So it serves "
            "another model."
        )
    ids = loaded.before_stop(ids)
    if min(len(own), len(rows)) < len(ids):
        raise ValueError(f"it gives {len(rows)} log-probs for {len(ids)} tokens.")
    # there may be one row more, of the token that ends the answer
    seen = [label_logits(*row, loaded) for row in zip(ids, own, rows, strict=False)]
    answer = loaded.answer(ids, [row.logits for row in seen])
    return answer._replace(doubts=[row.doubt for row in seen])


def reply_ids(choice: object, tokens: object) -> list[int] | None:
    """The ids of the tokens of a reply, as vLLM and SGLang give them; None if it has none."""
    ids = getattr(choice, "token_ids", None)
    if isinstance(ids, list) and all(type(i) is int and i >= 0 for i in ids):
        return ids
    if not isinstance(tokens, list):
        return None
    named = [TOKEN_ID.fullmatch(str(token)) for token in tokens]
    return [int(match[1]) for match in named if match] if all(named) else None


class LabelLogits(NamedTuple):
    """The log-probs of the labels at one token, -inf for a label that is not shown, and by how much
    the share of a label may be off for that."""

    logits: list[float]
    doubt: float


def label_logits(token: int, own: object, row: object, loaded: LoadedGuard) -> LabelLogits:
    """What a server says about the labels where it wrote `token` with the log-prob `own`. `row`:
    {token: log-prob} of the most likely tokens there."""
    given = row.items() if isinstance(row, dict) else ()
    shown = {str(name): min(value, 0.0) for name, value in given if isinstance(value, int | float)}
    if not all(map(TOKEN_ID.fullmatch, shown)):
        shown = by_id(shown, loaded)
    if token in loaded.labels.ids and isinstance(own, int | float):
        shown[f"token_id:{token}"] = min(own, 0.0)
    logits = [shown.get(f"token_id:{i}", -math.inf) for i in loaded.labels.ids]
    hidden = logits.count(-math.inf)
    if not hidden:
        return LabelLogits(logits, 0.0)
    rest = max(1.0 - sum(map(math.exp, shown.values())), 0.0)
    each = min(rest, math.exp(min(shown.values(), default=0.0)))
    known = sum(map(math.exp, logits))
    return LabelLogits(logits, hidden * each / (known + hidden * each) if known else 1.0)


def by_id(shown: Mapping[str, float], loaded: LoadedGuard) -> dict[str, float]:
    """{token_id:N: log-prob} of tokens that a server names by their texts. ValueError if the
    tokenizer has another token with the text of a label."""
    texts = loaded.label_texts
    if None in texts:
        raise ValueError(
            "it names tokens by their texts, and the guard's tokenizer writes a label and another "
            "token alike, so their log-probs cannot be told apart. Take vLLM for this guard."
        )
    named = dict(zip(texts, loaded.labels.ids, strict=True))
    return {
        f"token_id:{named[text]}" if text in named else f"text:{text}": value
        for text, value in shown.items()
    }
