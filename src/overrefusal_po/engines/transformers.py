"""In-process generation with transformers: prompts -> completions, in length-sorted batches.

engine = TransformersEngine(model, ChatTemplate(tokenizer), name="my-model")
for completion in engine.complete(prompts, Sampling(max_new_tokens=48)):
    ...
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from functools import cached_property
from typing import Any

from pydantic import BaseModel, ConfigDict

from overrefusal_po.engines._continuous import check_continuous, generated
from overrefusal_po.engines._costs import Cost
from overrefusal_po.model import load as models
from overrefusal_po.model.chat import ChatTemplate
from overrefusal_po.records import Completion, Prompt, Sampling, content_id


class Settings(BaseModel):
    """The recipe keys of this engine; the weights are those of the recipe's `model:`."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    device: str | None = None
    """Where the weights go (cpu, cuda, cuda:1); None: onto the GPU where there is one."""
    continuous_batching: bool = False
    """Fills a slot as soon as a response ends, `generation.batch_size` of them. Greedy texts stay
    what they are; sampled ones then depend on what else is in work, so that a seed does not bring
    them back."""


class TransformersEngine:
    """Generates with a model that is already loaded.

    Args:
        model: a causal language model; it is put into eval mode, and onto `device`.
        template: the chat template and tokenizer (padding side left).
        name: what completions name as their model.
        batch_size: prompts decoded at a time.
        device: None is the GPU where there is one.
        continuous_batching: fill a slot as soon as a response ends, instead of batches that wait
            for their longest.
    """

    def __init__(
        self,
        model: Any,
        template: ChatTemplate,
        *,
        name: str,
        revision: str | None = None,
        batch_size: int = 16,
        device: str | None = None,
        continuous_batching: bool = False,
    ) -> None:
        import torch

        if continuous_batching:
            check_continuous(model)
        self.continuous_batching = continuous_batching
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.model = (
            model.eval().to(self.device)
            if not getattr(model, "is_quantized", False)
            else model.eval()
        )
        self.template = template
        self.name = name
        self.revision = revision
        self.batch_size = batch_size

    def complete(
        self,
        prompts: Iterable[Prompt],
        sampling: Sampling,
        *,
        samples: int = 1,
        had: Container[tuple[str, int]] = frozenset(),
        spent_tokens: int = 0,
        spend: Callable[[Cost], None] | None = None,
    ) -> Iterator[Completion]:
        """A completion for each prompt and sample number that is not in `had`, as they come
        (longest prompts first).

        Batches are planned over all prompts, so that a run that goes on draws in the batches of a
        run that never
        stopped: the same texts. Special tokens are left out. `spent_tokens` and `spend` are for
        engines that are paid.
        """
        rows = [(self.text_of(prompt), prompt) for prompt in prompts]
        order = sorted(range(len(rows)), key=lambda i: (-len(rows[i][0]), i))
        if self.continuous_batching:
            missing = (
                (rows[i], n) for i in order for n in range(samples) if (rows[i][1].id, n) not in had
            )
            yield from self._continuously(missing, sampling)
            return
        for sample in range(samples):
            for start in range(0, len(order), self.batch_size):
                batch = [rows[i] for i in order[start : start + self.batch_size]]
                if all((prompt.id, sample) in had for _, prompt in batch):
                    continue
                made = self._batch(
                    [p for _, p in batch], [text for text, _ in batch], sampling, sample
                )
                yield from (c for c in made if (c.prompt_id, sample) not in had)

    def text_of(self, prompt: Prompt) -> str:
        """What the model reads: the rendered conversation, or the raw text, up to where it
        writes."""
        if prompt.raw_text is None:
            return self.template.prompt_text(prompt.messages, prompt.assistant_prefix)
        return self.template.neutral(prompt.raw_text) + prompt.assistant_prefix

    def _batch(
        self, prompts: list[Prompt], texts: list[str], sampling: Sampling, sample: int
    ) -> Iterator[Completion]:
        import torch

        tokenizer = self.template.tokenizer
        inputs = tokenizer(
            texts,
            return_tensors="pt",
            padding=True,
            padding_side="left",
            add_special_tokens=False,
            return_token_type_ids=False,
        )
        inputs = inputs.to(self.device)
        if sampling.temperature > 0:
            # the seed follows the batch's content: the same batch draws the same on every run
            seed = int(content_id(sampling.seed, sample, [p.id for p in prompts]), 16) % 2**31
            torch.manual_seed(seed)
        with torch.inference_mode():
            output = self.model.generate(
                **inputs,
                **self.options(sampling),
                max_new_tokens=sampling.max_new_tokens,
            )
        width = inputs["input_ids"].shape[1]
        for prompt, row in zip(prompts, output[:, width:].tolist(), strict=True):
            yield self.completion(prompt, row, sampling, sample)

    def _continuously(
        self, work: Iterable[tuple[tuple[str, Prompt], int]], sampling: Sampling
    ) -> Iterator[Completion]:
        tokenizer = self.template.tokenizer
        requests = (
            ((p, n), tokenizer(text, add_special_tokens=False)["input_ids"])
            for (text, p), n in work
        )
        made = generated(
            self.model,
            requests,
            self.options(sampling),
            max_new_tokens=sampling.max_new_tokens,
            at_once=self.batch_size,
        )
        for (prompt, sample), (row, error) in made:
            yield self.completion(prompt, row, sampling, sample, error=error)

    def options(self, sampling: Sampling) -> dict[str, Any]:
        """GenerationConfig's keys. What a model's own config asks for beyond `sampling` is left
        out."""
        found: dict[str, Any] = {
            "do_sample": sampling.temperature > 0,
            "repetition_penalty": 1.0,
            "num_beams": 1,
        }
        if sampling.temperature > 0:
            found |= {"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0}
        return found | {
            "pad_token_id": self.template.tokenizer.pad_token_id,
            "eos_token_id": self.stop_tokens,
        }

    def completion(
        self,
        prompt: Prompt,
        row: list[int],
        sampling: Sampling,
        sample: int,
        *,
        error: str | None = None,
    ) -> Completion:
        """The completion of a response's tokens, up to the first that ends it; or the failure."""
        stop = next((i for i, token in enumerate(row) if token in self.stop_tokens), None)
        said = self.template.tokenizer.decode(row[:stop], skip_special_tokens=True)
        text = "" if error else self.opener(prompt) + said
        return Completion(
            id=content_id(
                prompt.id, self.name, self.revision, sampling.model_dump(), sample, error or text
            ),
            prompt_id=prompt.id,
            text=text,
            model=self.name,
            revision=self.revision,
            engine="transformers",
            sampling=sampling,
            sample=sample,
            finish_reason="error" if error else "length" if stop is None else "stop",
            error=error,
        )

    def opener(self, prompt: Prompt) -> str:
        """The mark of a thinking block that the prompt opened, so that a judge knows a thought that
        was cut from an answer."""
        return (
            self.template.thought_opener
            if prompt.raw_text is None and not prompt.assistant_prefix
            else ""
        )

    @cached_property
    def stop_tokens(self) -> list[int]:
        """Ids that end a response: the template's end of turn, the tokenizer's, and the model's
        generation config."""
        config = getattr(self.model.generation_config, "eos_token_id", None)
        ids = config if isinstance(config, list) else [config]
        ends = [*ids, self.template.tokenizer.eos_token_id, self.template.end_of_turn_id]
        return sorted({i for i in ends if i is not None})


def engine(
    settings: Settings,
    section: Mapping[str, Any],
    template: ChatTemplate | None,
    *,
    name: str,
    system_prompt: str | None,
    template_kwargs: Mapping[str, Any],
    batch_size: int,
) -> TransformersEngine:
    """The plug-file entry point: loads the weights of a recipe's `model:`. The template has the
    chat options already."""
    assert template is not None, "the tokenizer is loaded with the weights"
    model = models.load_model(**models.model_options(dict(section)))
    return TransformersEngine(
        model,
        template,
        name=name,
        revision=section.get("model_revision"),
        batch_size=batch_size,
        device=settings.device,
        continuous_batching=settings.continuous_batching,
    )


def note(settings: Settings) -> str:
    """What a manifest says of completions from this engine."""
    return "transformers" + (", continuous batching" if settings.continuous_batching else "")
