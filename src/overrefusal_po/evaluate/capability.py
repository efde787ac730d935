"""Model -> capability, so that usefulness is not bought with a loss of skill: perplexity offline,
lm-eval if a recipe names tasks.

    found = perplexity(model, template, prompts, batch_size=8)
    # found.value, found.low, found.high, found.tokens
    scores = lm_eval_scores(model, template, ["arc_easy"], limit=200)
    # {"arc_easy": {"acc": .51, "acc_stderr": .03}}
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from overrefusal_po.evaluate.entries import PerplexityEntry, TaskScores
from overrefusal_po.evaluate.intervals import bootstrap, cluster_sums
from overrefusal_po.model.chat import ChatTemplate, Turn
from overrefusal_po.model.finite import NotFiniteError
from overrefusal_po.model.generation import context_length
from overrefusal_po.model.remedied import remedy_of
from overrefusal_po.records import Message, Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

RESAMPLES = 5000


class Perplexity(NamedTuple):
    """exp of the mean loss per token of the reference answers, and its 95 % interval.

    There is no interval with fewer than two clusters. `tokens` counts the response tokens (end of
    turn included), `n` the answers. Compare it only between models of one tokenizer and template.
    """

    value: float
    low: float | None
    high: float | None
    nats_per_token: float
    tokens: int
    n: int

    def as_dict(self) -> PerplexityEntry:
        """The entry of metrics.json."""
        return {
            "value": self.value,
            "low": self.low,
            "high": self.high,
            "nats_per_token": self.nats_per_token,
            "tokens": self.tokens,
            "n": self.n,
        }


def perplexity(
    model: PreTrainedModel,
    template: ChatTemplate,
    prompts: Sequence[Prompt],
    *,
    batch_size: int = 8,
    seed: int = 0,
) -> Perplexity:
    """How well a model predicts the reference answers of benign and general prompts; other prompts
    are left out.

    The interval redraws clusters of prompts (an original and the attacks on it). Raises ValueError
    if no benign or general prompt has a reference.
    """
    import numpy as np

    asked = asked_references(prompts)
    if not asked:
        raise ValueError(
            "Perplexity needs benign or general prompts with a reference answer; none of the "
            f"{len(prompts)} prompts is one. Name a set that has references (starter), or leave "
            "perplexity out."
        )
    turns = [reference_turn(template, prompt) for prompt in asked]
    fitting = fitting_places(turns, context_length(model))
    turns = [turns[at] for at in fitting]
    losses = response_nats(model, turns, batch_size)
    if not np.isfinite(losses).all():
        raise NotFiniteError(
            "The loss of a reference answer is NaN or infinite, so the model has no perplexity. "
            "Load it in the number format that it was trained in (model.dtype)."
        )
    rows = [
        (asked[at].cluster, (nats, len(turn.response_ids)))
        for at, turn, nats in zip(fitting, turns, losses, strict=True)
    ]
    spread = bootstrap(
        lambda sums: np.exp(sums[..., 0] / sums[..., 1]),
        cluster_sums(rows),
        resamples=RESAMPLES,
        seed=seed,
    )
    nats, tokens = (sum(row[column] for _, row in rows) for column in (0, 1))
    return Perplexity(
        float(np.exp(nats / tokens)), spread.low, spread.high, nats / tokens, int(tokens), len(rows)
    )


def asked_references(prompts: Sequence[Prompt]) -> list[Prompt]:
    """The benign and general prompts that have a reference answer."""
    return [p for p in prompts if p.kind != "harmful" and p.reference]


def reference_turn(template: ChatTemplate, prompt: Prompt) -> Turn:
    """The turn of a prompt's reference answer; of an unfinished one without its end."""
    turn = template.turn(prompt.messages, str(prompt.reference))
    return turn.unended if prompt.unfinished else turn


def fitting_places(turns: Sequence[Turn], context: int | None) -> list[int]:
    """The places of the turns that fit into a model's context; a warning counts the others.

    ValueError if none fits.
    """
    sizes = [len(turn.prompt_ids) + len(turn.response_ids) for turn in turns]
    found = [at for at, size in enumerate(sizes) if context is None or size <= context]
    if not found:
        raise ValueError(
            f"None of the {len(turns)} reference answers fits into the model's context of "
            f"{context} tokens. Set capability.perplexity: false, or give shorter prompts."
        )
    if len(found) < len(turns):
        logger.warning(
            "perplexity: %d of %d reference answers are longer than the model's context of %s "
            "tokens and are left out",
            len(turns) - len(found),
            len(turns),
            context,
        )
    return found


def response_nats(model: PreTrainedModel, turns: Sequence[Turn], batch_size: int) -> list[float]:
    """The summed loss (nats, float32) of each turn's response tokens, in order.

    A batch holds turns of similar length.
    """
    import torch

    model.eval()
    found = [0.0] * len(turns)
    order = sorted(
        range(len(turns)), key=lambda i: -len(turns[i].prompt_ids) - len(turns[i].response_ids)
    )
    with torch.inference_mode():
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            for i, nats in zip(batch, batch_nats(model, [turns[i] for i in batch]), strict=True):
                found[i] = nats
    return found


def batch_nats(model: PreTrainedModel, turns: Sequence[Turn]) -> list[float]:
    """`response_nats` of one batch, padded on the right: a causal model's earlier tokens do not see
    the padding."""
    import torch

    if remedy_of(model) is not None:
        return nats_behind_prompts(model, turns)
    rows = [torch.tensor(turn.prompt_ids + turn.response_ids) for turn in turns]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).to(model.device)  # (B, T)
    lengths = torch.tensor([len(row) for row in rows], device=ids.device)
    places = torch.arange(ids.shape[1], device=ids.device)[None]
    starts = torch.tensor([len(turn.prompt_ids) for turn in turns], device=ids.device)
    real = places < lengths[:, None]
    logits = model(input_ids=ids, attention_mask=real.long(), use_cache=False).logits
    # the logits at t - 1 predict token t; only the response's rows of the (B, T, vocabulary)
    # logits become float32
    meant = ((places >= starts[:, None]) & real)[:, 1:]
    losses = torch.nn.functional.cross_entropy(
        logits[:, :-1][meant].float(), ids[:, 1:][meant], reduction="none"
    )
    counts: list[int] = meant.sum(1).tolist()
    return [float(part.sum()) for part in torch.split(losses.double(), counts)]


def nats_behind_prompts(model: PreTrainedModel, turns: Sequence[Turn]) -> list[float]:
    """`batch_nats` as a model generates: the prompts first, padded on the left, and the responses
    behind their cache. So a remedy decides about each prompt."""
    import torch
    from transformers import DynamicCache

    prompts = [torch.tensor(turn.prompt_ids) for turn in turns]
    responses = [torch.tensor(turn.response_ids) for turn in turns]
    pad = torch.nn.utils.rnn.pad_sequence
    ids = pad(prompts, batch_first=True, padding_side="left").to(model.device)  # (B, P)
    mask = pad([torch.ones_like(p) for p in prompts], batch_first=True, padding_side="left")
    meant = pad(responses, batch_first=True, padding_value=-100).to(model.device)  # (B, R)
    mask = torch.cat([mask.to(model.device), (meant >= 0).long()], 1)
    places = (mask.cumsum(-1) - 1).clamp(min=0)
    width = ids.shape[1]
    read = model(
        input_ids=ids,
        attention_mask=mask[:, :width],
        position_ids=places[:, :width],
        past_key_values=DynamicCache(config=model.config),
        use_cache=True,  # a training leaves False in the config
        logits_to_keep=1,
    )
    logits = [read.logits[:, -1:]]
    if meant.shape[1] > 1:  # the last token of a response predicts nothing
        answered = model(
            input_ids=meant[:, :-1].clamp(min=0),
            attention_mask=mask[:, :-1],
            position_ids=places[:, width:-1],
            past_key_values=read.past_key_values,
            use_cache=True,
        )
        logits.append(answered.logits)
    losses = torch.nn.functional.cross_entropy(
        torch.cat(logits, 1)[meant >= 0].float(), meant[meant >= 0], reduction="none"
    )
    counts = [len(response) for response in responses]
    return [float(part.sum()) for part in torch.split(losses.double(), counts)]


def check_lm_eval() -> None:
    """Raises ValueError if the lm-eval harness is not installed."""
    if importlib.util.find_spec("lm_eval") is None:
        raise ValueError(
            "Capability tasks run in the lm-eval harness, which is not installed. Install it (pip "
            "install 'overrefusal-po[lm-eval]'), or leave the tasks out: perplexity on the "
            "reference answers needs nothing."
        )


def lm_eval_scores(
    model: PreTrainedModel,
    template: ChatTemplate,
    tasks: Sequence[str],
    *,
    limit: int | None = None,
    num_fewshot: int | None = None,
    batch_size: int | str = 8,
    seed: int = 0,
) -> TaskScores:
    """{task: {metric: value, metric_stderr: value}} of the lm-eval harness
    (`lm_eval.simple_evaluate`, 0.4.4 or later).

    Args:
        model: a loaded causal language model, on its device.
        template: what renders the items, with the template's system prompt.
        tasks: names of the harness, patterns too (`mmlu_*`); their data comes from the hub.
        limit: items of each task, the first ones; None takes all.
        num_fewshot: examples shown before each item; None leaves it to the task.

    Raises:
        ValueError: the harness is not installed, or does not know a task.
    """
    check_lm_eval()
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    manager = TaskManager()
    check_tasks(tasks, manager.match_tasks)
    measured = HFLM(pretrained=model, tokenizer=template.tokenizer, batch_size=batch_size)
    measured.apply_chat_template = partial(rendered, template)
    found = lm_eval.simple_evaluate(
        model=measured,
        tasks=manager.match_tasks(list(tasks)),
        task_manager=manager,
        limit=limit,
        num_fewshot=num_fewshot,
        apply_chat_template=True,
        system_instruction=template.system_prompt or None,
        log_samples=False,
        random_seed=seed,
        numpy_random_seed=seed,
        torch_random_seed=seed,
        fewshot_random_seed=seed,
    )
    return plain_scores(found["results"])


def rendered(
    template: ChatTemplate,
    chat_history: Sequence[Mapping[str, str]],
    add_generation_prompt: bool = True,
) -> str:
    """The harness's conversation as the evaluation's own prompts are rendered. Without
    `add_generation_prompt` its last turn begins the answer.

    A task's own description is left out, with a warning, if the template takes no system message.
    """
    messages = [Message.model_validate(dict(turn)) for turn in chat_history]
    prefix = "" if add_generation_prompt else messages.pop().content
    try:
        return template.prompt_text(messages, prefix)
    except ValueError as error:
        if messages[0].role != "system" or template.system_prompt:
            raise
        logger.warning("The description of a capability task is left out: %s", error)
        return template.prompt_text(messages[1:], prefix)


def check_tasks(tasks: Sequence[str], match: Callable[[list[str]], Sequence[str]]) -> None:
    """Raises ValueError for the tasks that the harness does not know."""
    unknown = [task for task in tasks if not match([task])]
    if unknown or not tasks:
        raise ValueError(
            "The lm-eval harness knows no task "
            f"{', '.join(map(repr, unknown)) or '(none was named)'}. Give names that "
            "`lm-eval ls tasks` prints."
        )


def plain_scores(results: Mapping[str, Mapping[str, object]]) -> TaskScores:
    """The scores in the harness's `results`; its other values are left out.

    Its keys are "metric,filter". The filter is left out if it is "none", else it stays
    ("exact_match,strict-match").
    """
    plain: TaskScores = {}
    for task, entry in results.items():
        scores = plain.setdefault(task, {})
        for key, value in entry.items():
            metric, comma, how = key.partition(",")
            # a standard error that the harness did not compute is the text "N/A"
            if comma and isinstance(value, int | float):
                scores[metric if how == "none" else key] = float(value)
    return plain
