"""Preference pairs as the conversations that TRL itself renders and tokenises.

    DPOTrainer(model, train_dataset=conversations(pairs, template), ...)

The package makes token ids itself (`ChatTemplate.pair_tokens`). Benchmarks and tests hold them, and
what is trained on them, against what TRL makes of these rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from overrefusal_po.model.chat import ChatTemplate
from overrefusal_po.model.frame import thinking_end
from overrefusal_po.records import PreferencePair

VERBATIM = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
"""A chat template for messages that are rendered already."""

MARK = "\u2402"


def conversation(template: ChatTemplate, pair: PreferencePair) -> dict[str, Any]:
    """A pair as a conversational row, with the template's options; TRL renders and tokenises it.

    A model that thinks is trained behind an empty block, which TRL cannot put into the prompt. Its
    row is rendered here, from what `prompt_text` puts before a begun answer.
    """
    said = {
        side: template.neutral(text[thinking_end(text) :].strip())
        for side, text in (("chosen", pair.chosen), ("rejected", pair.rejected))
    }
    asked = pair.prompt.messages
    prompt, kwargs = template.messages(asked), template.template_kwargs
    begun = template.prompt_text(asked, MARK).removesuffix(MARK)
    if "</think>" in begun.removeprefix(template.prompt_text(asked)):
        prompt, kwargs = [{"role": "user", "content": begun}], {"chat_template": VERBATIM}
        said = {side: text + template.end for side, text in said.items()}
    row = {side: [{"role": "assistant", "content": text}] for side, text in said.items()}
    return {"prompt": prompt, **row, **({"chat_template_kwargs": kwargs} if kwargs else {})}


def conversations(pairs: Sequence[PreferencePair], template: ChatTemplate) -> Any:
    """Pairs as a dataset of such rows."""
    from datasets import Dataset

    return Dataset.from_list([conversation(template, pair) for pair in pairs])
