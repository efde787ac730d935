"""An adapter and the servers that are to load it -> what `check` says of them. Nothing is loaded.

asked_servers(settings, served_adapter(settings.adapter))
# "the adapter a/ (rank 16, trained on Qwen/Qwen3-8B), served as overrefusal-po-5f3a09c2d1e4b687;
#  http://a:8000/v1 takes it"
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import SecretStr

from overrefusal_po.engines._adapter_folder import ServedAdapter
from overrefusal_po.engines._adapter_server import served_bases, takes_adapters
from overrefusal_po.engines._adapter_words import takes_none, unlike
from overrefusal_po.engines._openai_setup import make_client, read_api_key
from overrefusal_po.engines._own_loop import own_loop
from overrefusal_po.model.bases import is_base

if TYPE_CHECKING:
    from overrefusal_po.engines._openai_settings import Settings

CHECK_SECONDS = 5.0
"""The longest wait for a server's answer. It may be started later than the check."""


def asked_servers(settings: Settings, adapter: ServedAdapter) -> str:
    """The adapter, and what each server says that is there now.

    ValueError if a server is there and takes no adapters while it runs.
    """
    words = [f"{adapter.words}, served as {adapter.name} (--max-lora-rank {adapter.max_rank})"]
    try:
        key = read_api_key(settings)
    except ValueError:  # a run needs it; a check may be made where it is not
        return f"{words[0]}; the servers were not asked, because there is no key here"
    with own_loop() as run:
        for url in settings.base_url or ():
            words.append(run(server_words(url, settings, adapter, key)))
    return "; ".join(words)


async def server_words(url: str, settings: Settings, adapter: ServedAdapter, key: SecretStr) -> str:
    """What one server says. ValueError if it takes no adapters while it runs."""
    seconds = min(CHECK_SECONDS, settings.timeout_seconds)
    async with make_client(url, key, settings, timeout_seconds=seconds, max_retries=0) as client:
        takes, bases = await takes_adapters(url, client), await served_bases(client)
    if takes is None:
        return f"{url} cannot be asked now"
    if not takes:
        folder = settings.adapter_on_server or str(adapter.folder.absolute())
        raise ValueError(takes_none(url, adapter, folder))
    if not is_base(adapter.base, bases):
        return unlike(adapter, url, bases)
    return f"{url} takes adapters"
