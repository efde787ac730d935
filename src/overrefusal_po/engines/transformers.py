"""In-process generation with transformers: prompts -> completions, in length-sorted batches.

engine = TransformersEngine(model, ChatTemplate(tokenizer), name="my-model")
for completion in engine.complete(prompts, Sampling(max_new_tokens=48)):
    ...
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from overrefusal_po.chat import ChatTemplate
from overrefusal_po.records import Completion, Prompt, Sampling, content_id


class TransformersEngine:
    """Generates with a model that is already loaded.

    Args:
        model: a causal language model; it is put into eval mode, and onto the GPU where there is one.
        template: the chat template and tokenizer (padding side left).
        name: what completions name as their model.
        batch_size: prompts decoded at a time.
    """

    def __init__(
        self, model: Any, template: ChatTemplate, *, name: str, revision: str | None = None, batch_size: int = 16
    ) -> None:
        import torch

        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model = model.eval().to(self.device) if not getattr(model, "is_quantized", False) else model.eval()
        self.template = template
        self.name = name
        self.revision = revision
        self.batch_size = batch_size

    def complete(self, prompts: Sequence[Prompt], sampling: Sampling, *, sample: int = 0) -> Iterator[Completion]:
        """One completion for each prompt, as they come (longest prompts first), special tokens left out."""
        texts = [
            self.template.prompt_text(p.messages, p.assistant_prefix)
            if p.raw_text is None
            else self.template.neutral(p.raw_text) + p.assistant_prefix
            for p in prompts
        ]
        order = sorted(range(len(prompts)), key=lambda i: (-len(texts[i]), i))
        for start in range(0, len(order), self.batch_size):
            batch = order[start : start + self.batch_size]
            yield from self._batch([prompts[i] for i in batch], [texts[i] for i in batch], sampling, sample)

    def _batch(self, prompts: list[Prompt], texts: list[str], sampling: Sampling, sample: int) -> Iterator[Completion]:
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
        greedy = sampling.temperature == 0
        # what a model's own generation config asks for beyond this is left out, so that `sampling` says all
        options: dict[str, Any] = {"do_sample": not greedy, "repetition_penalty": 1.0, "num_beams": 1}
        if not greedy:
            options |= {"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0}
            # the seed follows the batch's content: the same batch draws the same on every run
            seed = int(content_id(sampling.seed, sample, [p.id for p in prompts]), 16) % 2**31
            torch.manual_seed(seed)
        with torch.inference_mode():
            output = self.model.generate(
                **inputs,
                **options,
                max_new_tokens=sampling.max_new_tokens,
                pad_token_id=tokenizer.pad_token_id,
                eos_token_id=self.stop_tokens,
            )
        width = inputs["input_ids"].shape[1]
        for prompt, row in zip(prompts, output[:, width:].tolist(), strict=True):
            stop = next((i for i, token in enumerate(row) if token in self.stop_tokens), None)
            text = tokenizer.decode(row[:stop], skip_special_tokens=True)
            yield Completion(
                id=content_id(prompt.id, self.name, self.revision, sampling.model_dump(), sample, text),
                prompt_id=prompt.id,
                text=text,
                model=self.name,
                revision=self.revision,
                engine="transformers",
                sampling=sampling,
                sample=sample,
                finish_reason="length" if stop is None else "stop",
            )

    @property
    def stop_tokens(self) -> list[int]:
        """Ids that end a response: the template's end of turn, the tokenizer's, and the model's generation config."""
        config = getattr(self.model.generation_config, "eos_token_id", None)
        ids = config if isinstance(config, list) else [config]
        ends = [*ids, self.template.tokenizer.eos_token_id, self.template.end_of_turn_id]
        return sorted({i for i in ends if i is not None})
