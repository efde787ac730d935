"""A model by name, a loaded model, or an engine -> an engine; used from Python, without a recipe.

with answering_engine(model, Generation(), tokenizer=tokenizer) as engine:
    engine.complete(prompts, sampling)
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from overrefusal_po.model import load as models
from overrefusal_po.model.chat import ChatTemplate
from overrefusal_po.plugins import check_engine
from overrefusal_po.recipe.sections import Chat, Generation
from overrefusal_po.recipe.sections import Engine as EngineSpec
from overrefusal_po.run.complete import engine_for, in_process, load_template

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from overrefusal_po.engines import Engine

    Student = PreTrainedModel | Engine | str | Path


@contextmanager
def answering_engine(
    model: Student,
    generation: Generation,
    *,
    engine: EngineSpec = "transformers",
    chat: Chat | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    template: ChatTemplate | None = None,
) -> Iterator[Engine]:
    """An engine for a model by name, a loaded model, or an engine; a loaded model is left in the
    mode that it had.

    Raises ValueError for a model that cannot be found, or whose tokenizer is not known, for a
    template with another system prompt than `chat`, and for an engine beside what it would not use;
    TypeError for anything else.
    """
    chat = chat or Chat()
    check_tokenizer("tokenizer", tokenizer)
    if template is not None and not isinstance(template, ChatTemplate):
        raise TypeError(
            f"template is a {type(template).__name__}; allowed is a ChatTemplate of "
            "overrefusal_po.model.chat. A Jinja text goes into tokenizer.chat_template."
        )
    if not hasattr(model, "parameters") and hasattr(model, "complete"):
        check_is_engine(model)
        check_renders_itself(tokenizer, template, chat)
        yield cast("Engine", model)
        return
    if template is None and tokenizer is not None:
        template = ChatTemplate(tokenizer, template_kwargs=chat.chat_template_kwargs)
    template = with_system_prompt(template, chat.system_prompt)
    if isinstance(model, str | Path):
        section = {"model_name_or_path": str(model)}
        check_engine(engine)
        known = template or (load_template(section, chat) if in_process(engine) else None)
        yield engine_for(section, known, generation, engine=engine, chat=chat)
        return
    loaded = loaded_model(model, template)
    training = loaded.training
    try:
        yield loaded_engine(loaded, generation, chat, template)
    finally:
        loaded.train(training)


def check_tokenizer(key: str, tokenizer: object) -> None:
    """Raises TypeError for a name in place of a tokenizer."""
    if isinstance(tokenizer, str | Path):
        raise TypeError(
            f"{key} is the text {str(tokenizer)!r}; allowed is a tokenizer: "
            f"AutoTokenizer.from_pretrained({str(tokenizer)!r})."
        )


def check_is_engine(engine: object) -> None:
    """Raises TypeError for a class in place of an engine, or an engine without a name."""
    if isinstance(engine, type):
        raise TypeError(f"model is the class {engine.__name__}. Give an object of it.")
    if not isinstance(getattr(engine, "name", None), str):
        raise TypeError(
            f"The engine, a {type(engine).__name__}, has no name. An engine has name, a text that "
            "says who answers, and complete(prompts, sampling)."
        )


def check_renders_itself(tokenizer: object, template: object, chat: Chat) -> None:
    """Raises ValueError for what an engine does not use: it renders its prompts itself."""
    given = {"tokenizer": tokenizer, "template": template, "system_prompt": chat.system_prompt}
    if unused := [name for name, value in given.items() if value is not None]:
        raise ValueError(
            f"An engine renders its prompts itself and would not use {' and '.join(unused)}. Give "
            "these to the engine when it is made, or give the model by name."
        )


def with_system_prompt(template: ChatTemplate | None, given: str | None) -> ChatTemplate | None:
    """The template with a system prompt that stands beside it; ValueError if it has another one."""
    if template is None or given is None or template.system_prompt == given:
        return template
    if template.system_prompt is not None:
        raise ValueError(
            f"The template has the system prompt {template.system_prompt[:60]!r}, and "
            f"system_prompt is {given[:60]!r}. Give one of the two."
        )
    return ChatTemplate(
        template.tokenizer, system_prompt=given, template_kwargs=template.template_kwargs
    )


def loaded_model(model: object, tokenizer: object) -> PreTrainedModel:
    """The loaded model; TypeError if it is none, ValueError if its tokenizer is not known."""
    if not (hasattr(model, "config") and hasattr(model, "generate")):
        raise TypeError(
            f"model is a {type(model).__name__}; allowed is a loaded causal language model, the "
            "name or path of one as text, or an object with name and complete."
        )
    check_tokenizer_known(model, tokenizer, "tokenizer=...")
    return cast("PreTrainedModel", model)


# Any: a loaded model, whose class does not matter
def check_tokenizer_known(model: Any, tokenizer: object, how: str) -> None:
    """Raises ValueError if a loaded model has no name and no tokenizer is given. `how`: how to
    give one."""
    if tokenizer is None and not getattr(model.config, "name_or_path", ""):
        raise ValueError(
            "The model was not loaded from a name or path, so its tokenizer is not known. Give it: "
            f"{how}"
        )


def loaded_engine(
    model: PreTrainedModel,
    generation: Generation,
    chat: Chat,
    template: ChatTemplate | None,
) -> Engine:
    """The transformers engine of a model that is loaded, on the device where it is."""
    from overrefusal_po.engines.transformers import TransformersEngine

    name = str(model.config.name_or_path)
    if template is None:
        template = ChatTemplate(
            models.load_tokenizer(name),
            system_prompt=chat.system_prompt,
            template_kwargs=chat.chat_template_kwargs,
        )
    return TransformersEngine(
        model,
        template,
        name=name or type(model).__name__,
        batch_size=generation.batch_size,
        device=str(model.device),
    )
