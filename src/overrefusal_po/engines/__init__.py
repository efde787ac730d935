"""Engines: prompts -> completions. A file here is an engine; a recipe's `engine:` names it.

An engine file, or a module of your own, defines what `EnginePlug` lists:

    class Settings(BaseModel):
        url: str

    def engine(settings, section, template, *, name, system_prompt, template_kwargs, batch_size):
        return MyEngine(settings.url, name)     # an `Engine`

    def note(settings):
        return f"my engine at {settings.url}"

It may also define

- `check(settings)`, which raises ValueError if something is missing (a key). A stage calls it
  before it loads any weights.
- `check_line(settings)`: what `check --data` says of it, or None. The same ValueErrors.
- `inputs(settings)`: {key: hash} of the content that responses depend on beside the recipe. Another
  content is another run.
- `model_words(settings)`: what answers beside the recipe's model (an adapter), or None.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from types import ModuleType
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from pydantic import BaseModel

    from overrefusal_po.engines._costs import Cost
    from overrefusal_po.model.chat import ChatTemplate
    from overrefusal_po.records import Completion, Prompt, Sampling

SampleKey = tuple[str, int]
"""(prompt id, sample number): identifies one completion to draw."""

PLUG_NAMES = ("Settings", "engine", "note")
"""What an engine file must define."""


class Engine(Protocol):
    """Completes prompts, in any order."""

    name: str
    """The model's name in completions."""

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
        """One completion for each prompt and sample number that is not in `had`.

        Args:
            prompts: may be a stream; read it only as fast as needed if you can.
            sampling: how to draw.
            samples: completions of each prompt, numbered from 0.
            had: what earlier runs drew.
            spent_tokens: tokens that earlier runs paid for.
            spend: gets the cost of each completion, just before the completion.
        """


class EnginePlug(Protocol):
    """What an engine file defines."""

    Settings: type[BaseModel]
    """The recipe keys of this engine."""

    def engine(
        self,
        # Any: each engine file has its own Settings
        settings: Any,
        section: Mapping[str, object],
        template: ChatTemplate | None,
        *,
        name: str,
        system_prompt: str | None,
        template_kwargs: Mapping[str, object],
        batch_size: int,
    ) -> Engine:
        """The engine for the model of a recipe's `model:` section.

        Args:
            settings: an instance of `Settings`.
            section: the `model:` section.
            template: the model's chat template; None for an engine over HTTP.
            name: the model's name in completions.
            system_prompt: for an engine without `template`.
            template_kwargs: options of the chat template, for an engine without `template`.
            batch_size: prompts to decode at a time.
        """

    def note(self, settings: Any) -> str:
        """Where completions come from, in words, for manifests and reports."""


def check_engine_plug(module: ModuleType) -> None:
    """Raises ValueError if `module` lacks something that an engine file must define."""
    missing = [name for name in PLUG_NAMES if not callable(getattr(module, name, None))]
    if missing:
        raise ValueError(
            f"engines: the module {module.__name__!r} has no {missing[0]}. An engine file defines "
            f"{', '.join(PLUG_NAMES)}; overrefusal_po/engines/__init__.py describes them."
        )


def check_engine_made(made: object, module: ModuleType) -> None:
    """Raises ValueError if what `module.engine` returned is no `Engine`."""
    missing = [name for name in ("name", "complete") if not hasattr(made, name)]
    if missing:
        raise ValueError(
            f"engines: engine() of the module {module.__name__!r} returned a "
            f"{type(made).__name__} without {missing[0]}. An engine has a name and a method "
            "complete; overrefusal_po/engines/__init__.py describes them."
        )
