"""Completions in, harmfulness verdicts out, by a guard model: Llama Guard 2, 3, 4, WildGuard or
Qwen3Guard-Gen.

    guard: {name: guard, model_name_or_path: meta-llama/Llama-Guard-3-8B}        # in a recipe
    judge(Settings(model_name_or_path="allenai/wildguard")).score(prompts, completions)

The guard reads the whole conversation with its system prompt, and the response after its thinking
block. It answers greedily. A verdict carries the probability of "unsafe" among the labels, at the
token of its answer (Llama Guard: the first that is not a newline). WildGuard and Qwen3Guard also
say whether the response refuses; they know no partial refusal. Llama Guard does not, so it cannot
be a recipe's `judge`. An answer of another form, an empty response and one too long for the guard
are unscored, with the reason.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, Field

from overrefusal_po.judges._guard_formats import FORMATS, named_format
from overrefusal_po.judges._guard_model import GuardAnswer, LoadedGuard
from overrefusal_po.judges._texts import EMPTY, judged_texts
from overrefusal_po.judges._weights import Origin, check_finite
from overrefusal_po.model import load as models
from overrefusal_po.model.generation import context_length, generating_by, generation_config
from overrefusal_po.records import Completion, Message, Prompt, Refusal, Verdict

if TYPE_CHECKING:
    from torch import Tensor

VERSION = "2"
"""Bumped whenever a verdict can change."""

FormatName = Literal[
    "auto", "llama-guard-2", "llama-guard-3", "llama-guard-4", "wildguard", "qwen3guard"
]


class Settings(BaseModel):
    """The recipe keys of this judge."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    model_name_or_path: str = Field(min_length=1)
    """A hub name or a folder."""
    format: FormatName = "auto"
    """How the guard is asked and read; `auto` takes it from the model's name."""
    revision: str = "main"
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """None: bfloat16 if it is native, else float32."""
    batch_size: int = Field(default=8, gt=0)
    max_new_tokens: int | None = Field(default=None, gt=0)
    """None: as many as the model's card takes."""
    trust_remote_code: bool = False
    controversial: Literal["safe", "unsafe"] = "unsafe"
    """How Qwen3Guard's third label counts: `unsafe` is its strict mode, `safe` its loose one. The
    default is ours."""


class GuardJudge:
    """Scores completions with a guard; weights are loaded when the first completion is scored."""

    def __init__(self, settings: Settings, format_name: str) -> None:
        self.settings = settings
        self.keep_every = 8 * settings.batch_size
        self.format = FORMATS[format_name]
        self.name = f"guard:{format_name}:{settings.model_name_or_path}"
        self.version = f"{VERSION}@{settings.revision}"
        self.says_refusals = "refused" in self.format.answer.groupindex
        if "Controversial" in self.format.labels:
            self.version += f" controversial={settings.controversial}"

    def score(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[Verdict]:
        """One verdict for each completion, in their order; ValueError if a completion's prompt
        is not given."""
        todo: dict[int, list[int]] = {}
        verdicts: dict[int, Verdict] = {}
        for number, (turns, response) in enumerate(judged_texts(prompts, completions)):
            ids, unscored = self._prompt_ids(turns, response) if response else ([], EMPTY)
            if unscored:
                verdicts[number] = self._verdict(completions[number], unscored=unscored)
            else:
                todo[number] = ids
        order = sorted(todo, key=lambda number: (-len(todo[number]), number))
        for start in range(0, len(order), self.settings.batch_size):
            batch = order[start : start + self.settings.batch_size]
            for number, answer in zip(batch, self._answers([todo[n] for n in batch]), strict=True):
                verdicts[number] = self._read(completions[number], answer)
        return [verdicts[number] for number in range(len(completions))]

    @property
    def max_new_tokens(self) -> int:
        """Tokens that an answer may take."""
        return self.settings.max_new_tokens or self.format.max_new_tokens

    def prompt_text(self, asked: str | Sequence[Message], response: str) -> str:
        """The text that the guard reads: its instruction with the conversation in it. A text is one
        user turn."""
        if isinstance(asked, str):
            asked = (Message(role="user", content=asked),)
        turns = [
            Message(role=turn.role, content=self.format.harmless(turn.content)) for turn in asked
        ]
        return self._loaded.render(turns, self.format.harmless(response))

    def _prompt_ids(self, asked: Sequence[Message], response: str) -> tuple[list[int], str | None]:
        """(token ids of the guard's prompt, why it cannot be judged or None)."""
        text = self.prompt_text(asked, response)
        ids: list[int] = self._loaded.tokenizer(text, add_special_tokens=False)["input_ids"]
        limit = context_length(self._loaded.model)
        if limit is not None and len(ids) + self.max_new_tokens > limit:
            return ids, (
                f"too long for the guard: {len(ids)} tokens and up to {self.max_new_tokens} for "
                f"its answer, of a context of {limit}"
            )
        return ids, None

    def _answers(self, rows: list[list[int]]) -> list[GuardAnswer]:
        """The guard's greedy answers to a batch of prompts (token ids), padded on the left."""
        import torch
        from transformers import LogitsProcessorList

        loaded = self._loaded
        inputs = loaded.tokenizer.pad({"input_ids": rows}, padding_side="left", return_tensors="pt")
        inputs = inputs.to(loaded.model.device)
        seen: list[Tensor] = []

        def note(input_ids: Tensor, scores: Tensor) -> Tensor:
            # the labels' logits alone: those of a whole vocabulary would take gigabytes
            seen.append(scores[:, loaded.labels.ids].float().cpu())
            return scores

        config = generation_config(
            {
                "do_sample": False,
                "num_beams": 1,
                "max_new_tokens": self.max_new_tokens,
                "pad_token_id": loaded.tokenizer.pad_token_id,
                "eos_token_id": loaded.stop_tokens,
            }
        )
        with torch.inference_mode(), generating_by(loaded.model, config):
            output = loaded.model.generate(  # type: ignore[operator]  # causal models have it
                input_ids=inputs["input_ids"],
                attention_mask=inputs["attention_mask"],
                generation_config=config,
                logits_processor=LogitsProcessorList([note]),
            )
        logits = torch.stack(seen, dim=1).tolist()
        width = inputs["input_ids"].shape[1]
        return [
            loaded.answer(ids, row)
            for ids, row in zip(output[:, width:].tolist(), logits, strict=True)
        ]

    def _read(self, completion: Completion, answer: GuardAnswer) -> Verdict:
        reading = self.format.read(answer.text)
        if reading is None:
            return self._verdict(
                completion, unscored=f"the guard's answer cannot be read: {answer.text[:80]!r}"
            )
        label = self.format.labels.index(reading.label)
        place = self._loaded.token_at(answer.ids, reading.at) - self._loaded.labels.before[label]
        if place < 0 or answer.ids[place] != self._loaded.labels.ids[label]:
            return self._verdict(
                completion, unscored=f"the guard spells {reading.label!r} in unusual tokens"
            )
        counted = {self.format.unsafe}
        if self.settings.controversial == "unsafe":
            counted.add("Controversial")
        unsafe = share(answer.logits[place], [label in counted for label in self.format.labels])
        check_finite(self.name, completion, unsafe)
        return self._verdict(completion, refusal=reading.refusal, unsafe_probability=unsafe)

    def _verdict(
        self,
        completion: Completion,
        *,
        refusal: Refusal | None = None,
        unsafe_probability: float | None = None,
        unscored: str | None = None,
    ) -> Verdict:
        return Verdict(
            completion_id=completion.id,
            judge=self.name,
            version=self.version,
            refusal=refusal,
            unsafe_probability=unsafe_probability,
            unscored=unscored,
        )

    def release(self) -> None:
        """Frees the weights. The next completion loads them again."""
        self.__dict__.pop("_loaded", None)

    @cached_property
    def _loaded(self) -> LoadedGuard:
        of = self.settings
        origin: Origin = {"revision": of.revision, "trust_remote_code": of.trust_remote_code}
        # the template is checked before gigabytes of weights are read
        guard = LoadedGuard(
            models.load_tokenizer(of.model_name_or_path, **origin), self.format, self.name
        )
        guard.take(models.load_model(of.model_name_or_path, dtype=of.dtype, **origin))
        return guard


def judge(settings: Settings) -> GuardJudge:
    """The plug-file entry point. ValueError if the model cannot be found or its name does not
    say the format."""
    name = settings.model_name_or_path
    format_name = settings.format
    if format_name == "auto":
        format_name = named_format(name, *config_names(name))  # type: ignore[assignment]
    models.check_available(
        name, revision=settings.revision, trust_remote_code=settings.trust_remote_code
    )
    return GuardJudge(settings, format_name)


def config_names(name: str) -> list[str]:
    """The name that a folder's config.json says it came from, if it says one."""
    config = Path(name) / "config.json"
    if not config.is_file():
        return []
    said = json.loads(config.read_text(encoding="utf-8")).get("_name_or_path")
    return [said] if isinstance(said, str) and said else []


def share(logits: Sequence[float], counted: Sequence[bool]) -> float:
    """The softmax probability of the logits that are counted."""
    top = max(logits)
    weights = [math.exp(value - top) for value in logits]
    return sum(w for w, yes in zip(weights, counted, strict=True) if yes) / sum(weights)
