"""Generation in process with transformers: prompts -> completions, in batches sorted by length.

engine = TransformersEngine(model, ChatTemplate(tokenizer), name="my-model")
for completion in engine.complete(prompts, Sampling(max_new_tokens=48)):
    print(completion.text)
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, field_validator

from overrefusal_po.engines import SampleKey
from overrefusal_po.engines._batches import Limit, in_parts, planned, response_tokens
from overrefusal_po.engines._continuous import check_continuous, generate_continuously
from overrefusal_po.engines._costs import Cost
from overrefusal_po.engines._first_states import FirstStates
from overrefusal_po.engines._remedied import check_served, drawn_revision, tokens_behind
from overrefusal_po.model import generation
from overrefusal_po.model import load as models
from overrefusal_po.model.chat import ChatTemplate
from overrefusal_po.model.packed_weights import packed_weights
from overrefusal_po.model.padded import left_padded, plain_bos
from overrefusal_po.model.prompt_cache import PromptCache
from overrefusal_po.model.soft_tokens import soft_ids
from overrefusal_po.records import Completion, Prompt, Sampling, content_id

if TYPE_CHECKING:
    from transformers import BatchEncoding, PreTrainedModel


class Settings(BaseModel):
    """The recipe keys of this engine. The weights are those of the recipe's `model:`."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    device: str | None = None
    """The device for the weights (cpu, cuda, cuda:1); None: the GPU if there is one."""
    continuous_batching: bool = False
    """Fills a slot as soon as a response ends; `generation.batch_size` is the number of slots.
    Greedy texts stay the same. Sampled texts then depend on what else runs, so a seed does not
    repeat them."""
    # Any: GenerationConfig checks the values
    generation_config: Literal["model"] | dict[str, Any] = Field(default_factory=dict)
    """Settings of transformers' GenerationConfig, such as {repetition_penalty: 1.1}. `model` takes
    those of the model's own generation_config.json. Without this key none of them is used."""

    @field_validator("generation_config")
    @classmethod
    def are_not_ours(cls, given: Any) -> Any:
        """Refuses settings that other keys of the recipe give, or that the engine cannot read."""
        if both := sorted(set(generation.RECIPE_KEYS) & set(given)) if given != "model" else []:
            raise ValueError(
                f"{both[0]} cannot be set here; generation and seed say how long texts are and how "
                "they are drawn"
            )
        return given


class Input(NamedTuple):
    """A prompt, and the text that the model reads for it."""

    prompt: Prompt
    text: str


class TransformersEngine:
    """Generates with a model that is loaded already.

    Args:
        model: a causal language model. The engine sets eval mode and moves it to `device`.
        template: the chat template and tokenizer (padding on the left).
        name: the model's name in completions.
        revision: the model's revision in completions; a remedy's id is added to it.
        batch_size: prompts to decode at a time.
        device: None is the GPU if there is one.
        continuous_batching: fill a slot as soon as a response ends.
        settings: keys of GenerationConfig; "model" takes those of the model's own file, which is
            left out otherwise.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        template: ChatTemplate,
        *,
        name: str,
        revision: str | None = None,
        batch_size: int = 16,
        device: str | None = None,
        continuous_batching: bool = False,
        settings: Literal["model"] | Mapping[str, object] | None = None,
    ) -> None:
        import torch

        if continuous_batching:
            check_continuous(model)
        self.continuous_batching = continuous_batching
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        # transformers does not annotate `eval`
        self.model: PreTrainedModel = model.eval()
        if not getattr(model, "is_quantized", False):
            self.model = self.model.to(self.device)
        self.template = template
        self.name = name
        self.revision = revision
        self.batch_size = batch_size
        self.at_once = Limit(batch_size)
        self.first_states: FirstStates | None = None
        own = generation.changed_settings(model.generation_config)
        self.settings = dict(own if settings == "model" else settings or {})
        check_served(model, self.settings, continuous=continuous_batching)
        self.context = generation.context_length(model)

    def complete(
        self,
        prompts: Iterable[Prompt],
        sampling: Sampling,
        *,
        samples: int = 1,
        had: Container[SampleKey] = frozenset(),
        spent_tokens: int = 0,
        spend: Callable[[Cost], None] | None = None,
    ) -> Iterator[Completion]:
        """A completion for each prompt and sample number that is not in `had`, longest prompts
        first.

        Batches are planned over all prompts. So a resumed run draws in the same batches, and the
        same texts, as a run that never stopped; texts have no special tokens. `spent_tokens` and
        `spend` are for paid engines. A prompt that leaves no room for the response in the model's
        context is not answered: its completion has an `error`.
        """
        check_served(self.model, self.settings, continuous=self.continuous_batching)
        inputs = [Input(prompt, self.input_text(prompt)) for prompt in prompts]
        for prompt in self.without_room(inputs, sampling):
            for sample in range(samples):
                if (prompt.id, sample) not in had:
                    yield self.no_room(prompt, sampling, sample)
        inputs.sort(key=lambda i: -len(i.text))

        def missing(one: Input, sample: int) -> bool:
            return (one.prompt.id, sample) not in had

        if self.continuous_batching:
            work = ((i, n) for i in inputs for n in range(samples) if missing(i, n))
            yield from self._continuously(work, sampling)
            return
        plan = planned(inputs, self.batch_size, samples, missing)
        with packed_weights(self.model, steps=len(plan) * sampling.max_new_tokens):
            read = PromptCache()
            for sample, part, more in plan:
                read.more = more
                make = partial(self._batch, sampling=sampling, sample=sample, read=read)
                made = in_parts(part, self.at_once, make)
                yield from (c for c in made if (c.prompt_id, sample) not in had)

    def without_room(self, inputs: list[Input], sampling: Sampling) -> list[Prompt]:
        """The prompts that with a whole response are longer than the context; they leave
        `inputs`."""
        if self.context is None:
            return []
        room = self.context - tokens_behind(self.model, sampling.max_new_tokens)
        # a token is a byte at least, so most texts need no tokenizer here
        long = [row for row in inputs if len(row.text.encode()) > room]
        over = {row.prompt.id for row in long if len(self.token_ids(row.text)) > room}
        found = [row.prompt for row in long if row.prompt.id in over]
        inputs[:] = [row for row in inputs if row.prompt.id not in over]
        return found

    def no_room(self, prompt: Prompt, sampling: Sampling, sample: int) -> Completion:
        """The completion of a prompt that is too long."""
        error = (
            f"the prompt is too long: with {sampling.max_new_tokens} new tokens it is over the "
            f"model's context of {self.context} tokens"
        )
        return self.completion(prompt, [], sampling, sample=sample, error=error)

    def token_ids(self, text: str) -> list[int]:
        """The token ids of a rendered text."""
        found: list[int] = self.template.tokenizer(text, add_special_tokens=False)["input_ids"]
        return found

    def input_text(self, prompt: Prompt) -> str:
        """The text to continue: the rendered conversation, or the raw text behind its BOS."""
        if prompt.raw_text is None:
            return self.template.prompt_text(prompt.messages, prompt.assistant_prefix)
        bos = plain_bos(self.template.tokenizer)
        return bos + self.template.neutral(prompt.raw_text) + prompt.assistant_prefix

    def padded(self, texts: list[str]) -> BatchEncoding:
        """The texts as token ids (B, T) with their mask, padded on the left, on the device."""
        inputs = left_padded(self.template.tokenizer, texts)
        inputs.to(self.device)  # in place
        return inputs

    def _batch(
        self, batch: Sequence[Input], sampling: Sampling, sample: int, read: PromptCache
    ) -> list[Completion]:
        import torch

        inputs = self.padded([text for _, text in batch])
        ids = [prompt.id for prompt, _ in batch]
        if sampling.temperature > 0:
            # the seed follows from the batch's content, so every run draws the same from it
            torch.manual_seed(int(content_id(sampling.seed, sample, ids), 16) % 2**31)
        keeper = self.first_states.keeper(ids) if self.first_states and sample == 0 else None
        tokens = response_tokens(
            self.model,
            inputs,
            generation.generation_config(self.options(sampling)),
            name=self.name,
            first_seen=keeper,
            prompts_read=read,
        )
        rows = zip(batch, tokens, strict=True)
        return [self.completion(one.prompt, found, sampling, sample=sample) for one, found in rows]

    def _continuously(
        self, work: Iterable[tuple[Input, int]], sampling: Sampling
    ) -> Iterator[Completion]:
        requests = (((prompt, sample), self.token_ids(text)) for (prompt, text), sample in work)
        responses = generate_continuously(
            self.model, requests, self.options(sampling), at_once=self.batch_size
        )
        for (prompt, sample), (tokens, error) in responses:
            yield self.completion(prompt, tokens, sampling, sample=sample, error=error)

    def options(self, sampling: Sampling) -> dict[str, object]:
        """Keys of GenerationConfig: the recipe's, the tokens that end a text, and nothing else."""
        # Any: GenerationConfig checks the values
        found: dict[str, Any] = {
            "do_sample": sampling.temperature > 0,
            "num_beams": 1,
            "max_new_tokens": sampling.max_new_tokens,
        }
        own = generation.without_recipe_keys(self.settings)
        if sampling.temperature > 0:
            found |= {"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0}
        if self.unsaid:
            found["suppress_tokens"] = [*(own.pop("suppress_tokens", None) or ()), *self.unsaid]
        return {
            **found,
            **own,
            "pad_token_id": self.template.tokenizer.pad_token_id,
            "eos_token_id": self.stop_tokens,
        }

    def completion(
        self,
        prompt: Prompt,
        tokens: list[int],
        sampling: Sampling,
        *,
        sample: int,
        error: str | None = None,
    ) -> Completion:
        """The completion of a response's token ids, up to the first stop token; or the failure."""
        stop = next((i for i, token in enumerate(tokens) if token in self.stop_tokens), None)
        response = str(self.template.tokenizer.decode(tokens[:stop], skip_special_tokens=True))
        revision = drawn_revision(self.model, self.revision)
        text = "" if error else self.thought_opener(prompt) + response
        return Completion(
            id=content_id(
                prompt.id, self.name, revision, sampling.model_dump(), sample, error or text
            ),
            prompt_id=prompt.id,
            text=text,
            model=self.name,
            revision=revision,
            engine="transformers",
            sampling=sampling,
            sample=sample,
            finish_reason="error" if error else "length" if stop is None else "stop",
            error=error,
        )

    def thought_opener(self, prompt: Prompt) -> str:
        """The mark of a thinking block that the prompt opened, else "". With it a judge can
        distinguish a thought that was cut off from an answer."""
        opens = prompt.raw_text is None and not prompt.assistant_prefix
        return self.template.thought_opener if opens else ""

    @cached_property
    def unsaid(self) -> list[int]:
        """Ids of soft tokens (`model.soft_tokens`): they are read in the system turn, not said."""
        return soft_ids(self.template.tokenizer)

    @cached_property
    def stop_tokens(self) -> list[int]:
        """Ids that end a response: the template's end of turn, the tokenizer's end of text, and
        those of the model's generation config."""
        config = getattr(self.model.generation_config, "eos_token_id", None)
        ids = config if isinstance(config, list) else [config]
        ends = [*ids, self.template.tokenizer.eos_token_id, self.template.end_of_turn_id]
        return sorted({i for i in ends if i is not None})


def engine(
    settings: Settings,
    section: Mapping[str, object],
    template: ChatTemplate | None,
    *,
    name: str,
    system_prompt: str | None,
    template_kwargs: Mapping[str, object],
    batch_size: int,
) -> TransformersEngine:
    """The engine of a recipe; loads the weights of its `model:`. `template` has the chat options
    already."""
    assert template is not None, "the tokenizer is loaded before the weights"
    check(settings)
    model = models.load_model(**models.model_options(dict(section)))
    revision = section.get("model_revision")
    return TransformersEngine(
        model,
        template,
        name=name,
        revision=None if revision is None else str(revision),
        batch_size=batch_size,
        device=settings.device,
        continuous_batching=settings.continuous_batching,
        settings=settings.generation_config,
    )


def check(settings: Settings) -> None:
    """Raises ValueError for generation settings that transformers does not take."""
    given = settings.generation_config
    if isinstance(given, dict) and given:
        try:
            generation.generation_config(given)
        except ValueError as error:
            raise ValueError(f"engine.generation_config: {error}") from None


def left_out(settings: Settings, section: Mapping[str, object]) -> dict[str, object]:
    """What the model's own generation_config.json would change, and is not used. Reads no
    weights."""
    return {} if settings.generation_config == "model" else generation.own_settings(section)


def note(settings: Settings) -> str:
    """Where completions come from, for manifests and reports."""
    found = "transformers" + (", continuous batching" if settings.continuous_batching else "")
    given = settings.generation_config
    if given == "model":
        return f"{found}, with the model's own generation_config.json"
    return f"{found}, {generation.settings_words(given)}" if given else found
