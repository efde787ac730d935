"""Completions in, rewards out, by a reward model: sequence classification over a prompt and its
response.

    reward: {name: reward, model_name_or_path: OpenAssistant/reward-model-deberta-v3-large-v2,
             format: pair}
    reward: {name: reward, model_name_or_path: Skywork/Skywork-Reward-Llama-3.1-8B-v0.2}
    reward: {name: reward, model_name_or_path: RLHFlow/ArmoRM-Llama3-8B-v0.1, head: 9}

A verdict's `reward` is the model's one output, or the head that `head` names. ArmoRM has 19: 9 is
ultrafeedback-helpfulness, 10 beavertails-is_safe. Its heads are read by transformers' own classes;
its overall score (`head` left out) needs its own code, so `trust_remote_code: true`, and a
transformers version that code still runs on. An empty response and one too long for the model are
unscored, with the reason. It never says what refuses, so it goes under a curation's `reward:`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from overrefusal_po.identity import conversation_text
from overrefusal_po.judges._texts import EMPTY, judged_texts
from overrefusal_po.judges._weights import Origin, check_finite, placed
from overrefusal_po.model import load as models
from overrefusal_po.model.chat import ChatTemplate
from overrefusal_po.model.frame import TRIAL, check_shown
from overrefusal_po.model.generation import context_length
from overrefusal_po.records import Completion, Message, Prompt, Verdict

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase
    from transformers.modeling_outputs import SequenceClassifierOutput

VERSION = "1"
"""Bumped whenever a reward can change."""

CLASSIFIER = "AutoModelForSequenceClassification"


class Settings(BaseModel):
    """The recipe keys of this judge."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", protected_namespaces=(), use_attribute_docstrings=True
    )

    model_name_or_path: str = Field(min_length=1)
    """A hub name or a folder."""
    format: Literal["chat", "pair"] = "chat"
    """`chat`: the tokenizer's chat template over the conversation; `pair`: question and answer as a
    text pair."""
    head: int | None = Field(default=None, ge=0)
    """Which output is the reward; None for a model that has one."""
    revision: str = "main"
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """None: bfloat16 if it is native, else float32."""
    batch_size: int = Field(default=8, gt=0)
    trust_remote_code: bool = False


class Loaded(NamedTuple):
    """A tokenizer and a reward model. `chat` is None for text pairs; `padding` None if rows
    cannot be padded."""

    tokenizer: PreTrainedTokenizerBase
    model: PreTrainedModel
    chat: ChatTemplate | None
    padding: int | None
    limit: int


class RewardJudge:
    """Scores completions with a reward model; weights are loaded when the first completion is
    scored."""

    says_refusals = says_harm = False

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.keep_every = 8 * settings.batch_size
        head = "" if settings.head is None else f":head {settings.head}"
        self.name = f"reward:{settings.model_name_or_path}{head}"
        self.version = f"{VERSION}@{settings.revision}"

    def score(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[Verdict]:
        """One verdict for each completion, in their order; ValueError if a completion's prompt
        is not given."""
        by_id = {prompt.id: prompt for prompt in prompts}
        rows: dict[int, dict[str, list[int]]] = {}
        unscored: dict[int, str] = {}
        rewards: dict[int, float] = {}
        for number, (_, response) in enumerate(judged_texts(prompts, completions)):
            row = self.row(by_id[completions[number].prompt_id], response) if response else None
            if row is None:
                unscored[number] = EMPTY
            elif (size := len(row["input_ids"])) > self._loaded.limit:
                limit = self._loaded.limit
                unscored[number] = f"too long for the reward model: {size} tokens of {limit}"
            else:
                rows[number] = row
        order = sorted(rows, key=lambda number: (-len(rows[number]["input_ids"]), number))
        size = self.settings.batch_size if not rows or self._loaded.padding is not None else 1
        for start in range(0, len(order), size):
            batch = order[start : start + size]
            rewards |= zip(batch, self._rewards([rows[n] for n in batch]), strict=True)
        for number, reward in rewards.items():
            check_finite(self.name, completions[number], reward)
        return [
            Verdict(
                completion_id=completion.id,
                judge=self.name,
                version=self.version,
                reward=rewards.get(number),
                unscored=unscored.get(number),
            )
            for number, completion in enumerate(completions)
        ]

    def row(self, prompt: Prompt, response: str) -> dict[str, list[int]]:
        """The model's input: token ids, and token types if the tokenizer makes them."""
        tokenizer, chat = self._loaded.tokenizer, self._loaded.chat
        if chat is None:
            # special tokens that stand in a text are spelled out; the tokenizer's own are still
            # added
            coded = tokenizer(
                conversation_text(prompt.conversation),
                response,
                truncation=False,
                split_special_tokens=True,
            )
        else:
            asked = prompt.conversation
            turns = chat.messages([*asked, Message(role="assistant", content=response)])
            text = tokenizer.apply_chat_template(turns, tokenize=False)
            coded = tokenizer(
                text, add_special_tokens=False, truncation=False, return_token_type_ids=False
            )
        return {
            key: value for key, value in coded.items() if key in ("input_ids", "token_type_ids")
        }

    def _rewards(self, rows: list[dict[str, list[int]]]) -> list[float]:
        """The rewards of a batch, padded on the right with the padding token of the model's
        config."""
        import torch

        model = self._loaded.model
        width = max(len(row["input_ids"]) for row in rows)
        fill = {"input_ids": self._loaded.padding or 0, "token_type_ids": 0}
        inputs = {
            key: [row[key] + [fill[key]] * (width - len(row[key])) for row in rows]
            for key in rows[0]
        }
        inputs["attention_mask"] = [
            [int(i < len(row["input_ids"])) for i in range(width)] for row in rows
        ]
        tensors = {key: torch.tensor(value, device=model.device) for key, value in inputs.items()}
        with torch.inference_mode():
            output = model(**tensors)
        return chosen_head(output, self.settings)

    @cached_property
    def _loaded(self) -> Loaded:
        of = self.settings
        origin: Origin = {"revision": of.revision, "trust_remote_code": of.trust_remote_code}
        tokenizer = models.load_tokenizer(of.model_name_or_path, **origin)
        chat = None if of.format == "pair" else chat_template(tokenizer, of)
        model = placed(load_classifier(of))
        # not the tokenizer's: the model looks for the last token that is not this one
        padding = getattr(model.config.get_text_config(), "pad_token_id", None)
        limit = min(context_length(model) or tokenizer.model_max_length, tokenizer.model_max_length)
        return Loaded(tokenizer, model, chat, padding, limit)


def judge(settings: Settings) -> RewardJudge:
    """The plug-file entry point. ValueError if the model cannot be found or its config rules out
    the settings."""
    models.check_available(
        settings.model_name_or_path,
        revision=settings.revision,
        trust_remote_code=settings.trust_remote_code,
    )
    config = Path(settings.model_name_or_path) / "config.json"
    if config.is_file():
        said = json.loads(config.read_text(encoding="utf-8"))
        num_heads = len(said["id2label"]) if "id2label" in said else said.get("num_labels")
        check_config(settings, num_heads=num_heads, auto_map=said.get("auto_map"))
    return RewardJudge(settings)


def check_config(settings: Settings, *, num_heads: int | None, auto_map: object) -> None:
    """Raises ValueError if a model's config does not go with `head` or needs its own code."""
    name, head = settings.model_name_or_path, settings.head
    if (
        isinstance(auto_map, dict)
        and CLASSIFIER in auto_map
        and head is None
        and not settings.trust_remote_code
    ):
        raise ValueError(
            f"{name} computes its score by code of its own. Name one output (head: 9 is ArmoRM's "
            "helpfulness, head: 10 its is_safe), or set trust_remote_code: true if you trust that "
            "code (it then runs on this machine)."
        )
    if num_heads is None or settings.trust_remote_code:
        return
    if head is None and num_heads > 1:
        raise ValueError(
            f"{name} has {num_heads} outputs. Say which one is the reward: head, from 0 to "
            f"{num_heads - 1}."
        )
    if head is not None and head >= num_heads:
        raise ValueError(
            f"{name} has {num_heads} outputs, so head can be 0 to {num_heads - 1}; got {head}."
        )


def chat_template(tokenizer: PreTrainedTokenizerBase, settings: Settings) -> ChatTemplate:
    """The tokenizer's chat template; ValueError that names `format: pair` if it has none, or if it
    leaves out the question or the answer."""

    def render(rows: Sequence[Mapping[str, str]]) -> str:
        return str(tokenizer.apply_chat_template([dict(row) for row in rows], tokenize=False))

    try:
        template = ChatTemplate(tokenizer)
        check_shown(render, TRIAL[:2])
        return template
    except ValueError as error:
        raise ValueError(
            f"{error} For a reward model over question and answer (DeBERTa) set format: pair."
        ) from None


def load_classifier(settings: Settings) -> PreTrainedModel:
    """The model with its classification head.

    Raises ValueError if it cannot be loaded, and if the head's weights are not in the files:
    transformers would draw them at random, and every reward would be noise.
    """
    from transformers import AutoConfig, AutoModelForSequenceClassification

    name = settings.model_name_or_path
    origin: Origin = {
        "revision": settings.revision,
        "trust_remote_code": settings.trust_remote_code,
    }
    # ArmoRM's 19 heads are a linear layer on the last token like transformers' own, under another
    # name
    names = (
        {}
        if settings.head is None or settings.trust_remote_code
        else {"key_mapping": {"^regression_layer": "score"}}
    )
    try:
        config = AutoConfig.from_pretrained(models.resolve(name), **origin)
        check_config(
            settings, num_heads=config.num_labels, auto_map=getattr(config, "auto_map", None)
        )
        model, loading = AutoModelForSequenceClassification.from_pretrained(
            models.resolve(name),
            dtype=settings.dtype or ("bfloat16" if models.has_bf16() else "float32"),
            output_loading_info=True,
            **names,
            **origin,
        )
    except (OSError, ImportError) as error:
        raise ValueError(
            f"The reward model {name!r} cannot be loaded: {str(error).splitlines()[0]} Give a "
            "model for sequence classification; code of its own may need an older transformers "
            "(ArmoRM's does: name a head instead)."
        ) from None
    if missing := sorted(loading["missing_keys"]):
        raise ValueError(
            f"{name!r} is no reward model that can be read: its files hold no weights for "
            f"{', '.join(missing[:3])}, which would be random. Give a model trained for sequence "
            "classification."
        )
    found: PreTrainedModel = model
    return found


def chosen_head(output: SequenceClassifierOutput, settings: Settings) -> list[float]:
    """The rewards in a model's output of shape (batch, outputs); ArmoRM's own code has `rewards`
    and `score`."""
    own: Tensor | None = getattr(output, "score" if settings.head is None else "rewards", None)
    values = output.logits if own is None else own
    assert values is not None, "a classifier gives logits"
    if settings.head is None:
        values = values.reshape(values.shape[0], -1)
    head = settings.head or 0
    if head >= values.shape[1] or (settings.head is None and values.shape[1] > 1):
        raise ValueError(
            f"{settings.model_name_or_path} gives {values.shape[1]} outputs. Say which one is the "
            f"reward: head, from 0 to {values.shape[1] - 1}; got {settings.head}."
        )
    return [float(value) for value in values[:, head].float().tolist()]
