"""What a server says about an adapter -> what it means, and what to do.

is_no_route(error)                  # the server takes no adapters while it runs
advice("LoRA rank 64 is greater than max_lora_rank 16", adapter, folder)
# "Start the server with --max-lora-rank 64 or more."
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import SecretStr

from overrefusal_po.engines._adapter_folder import ServedAdapter
from overrefusal_po.engines._openai_faults import proxy_note, shown, without_key
from overrefusal_po.engines._replies import SHOWN, said_words

if TYPE_CHECKING:
    from openai import APIError, APIStatusError

LOAD = "load_lora_adapter"
"""The action of loading, which is the end of its address."""

ABOUT_ADAPTERS = re.compile(r"adapter|\blora\b", re.IGNORECASE)
"""Words of an error that is about an adapter."""


def is_no_route(error: APIStatusError) -> bool:
    """Whether the server does not have the address, rather than the adapter."""
    said = reply_words(error).replace(LOAD, "")  # some repeat the address
    return error.status_code in (404, 405) and ABOUT_ADAPTERS.search(said) is None


def is_loaded_already(error: APIStatusError) -> bool:
    """Whether the server has an adapter of that name."""
    return error.status_code in (400, 409) and "already" in reply_words(error).lower()


def reply_words(error: APIError) -> str:
    """What a server says, also in SGLang's form."""
    return " ".join([*said_words(error.body), sglang_words(error)])


def sglang_words(error: APIError) -> str:
    """What SGLang says about adapters; "" from another server."""
    body = error.body if isinstance(error.body, dict) else {}
    return str(body.get("error_message") or "")


def own_words(what: str, error: APIError, key: SecretStr) -> str:
    """`what` with the server's message, as `shown` has it."""
    said = " ".join(sglang_words(error).split())
    return f"{what} ({without_key(said, key)[:SHOWN]})" if said else shown(what, error, key)


def advice(said: str, adapter: ServedAdapter, folder: str) -> str:
    """What to do about a server's refusal, by its words."""
    words = said.lower()
    if re.search(r"max.?lora.?rank|\brank\b", words):
        return f"Start the server with --max-lora-rank {adapter.max_rank} or more."
    if re.search(r"not enabled|enable.?lora|lora_manager|no attribute", words):
        return how_to_start(adapter, folder)
    if re.search(r"no adapter|not found|no such file|cannot be found|does not exist", words):
        return (
            f"The server reads {folder} from its own disks. Put the run folder where all servers "
            "see it, or say in engine.adapter_on_server which path it has there."
        )
    return "The server's log says more."


def takes_none(url: str, adapter: ServedAdapter, folder: str) -> str:
    """That a server takes no adapters while it runs, and what to do."""
    return (
        f"engine.adapter: engine.base_url {url} takes no adapters while it runs{proxy_note(url)}. "
        f"{how_to_start(adapter, folder)}"
    )


def weaker(url: str, adapter: ServedAdapter) -> str:
    """That a server would scale an adapter with `use_rslora` down."""
    return (
        f"engine.adapter: {adapter.folder} has use_rslora, and SGLang (engine.base_url {url}) "
        "scales each adapter by lora_alpha / r, so it would be too weak. Serve it with vLLM, or "
        "serve the merged model (model/ beside adapter/) without engine.adapter."
    )


def how_to_start(adapter: ServedAdapter, folder: str) -> str:
    """How to start a server that takes this adapter while it runs, or from its start."""
    rank = adapter.max_rank
    return (
        f"Start vLLM with --enable-lora --max-lora-rank {rank} and the environment variable "
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True, or SGLang with --enable-lora --max-lora-rank "
        f"{rank} --lora-target-modules all. Or start it with --lora-modules NAME={folder}, and "
        "give engine.model: NAME without engine.adapter."
    )


def unlike(adapter: ServedAdapter, url: str, bases: Sequence[str]) -> str:
    """That a server's model is not the one that the adapter was trained on."""
    return (
        f"engine.adapter {adapter.folder} was trained on {adapter.base}, and {url} serves "
        f"{', '.join(bases)}. If these are two models, its responses mean nothing."
    )
