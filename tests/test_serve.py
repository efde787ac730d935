"""The engine `openai` against the real `transformers serve` on loopback, with a tiny model that
thinks.

Greedily it gives the same texts as the model in process. It seeds one generator for all requests,
so a seed repeats a text only if requests come one at a time. It samples only if the model's
generation config says so, at any temperature. (`extra_body: {generation_config: '{"do_sample":
true}'}` says so too.)
"""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from conftest import Style
from test_thinking import THINKERS, template_of

from overrefusal_po.engines.openai import OpenAIEngine, Settings
from overrefusal_po.engines.transformers import TransformersEngine
from overrefusal_po.model.chat import ChatTemplate
from overrefusal_po.plugins import make_judge
from overrefusal_po.records import Completion, Message, Prompt, Sampling
from overrefusal_po.run.complete import complete, draw

pytestmark = pytest.mark.skipif(
    not (find_spec("fastapi") and find_spec("uvicorn") and find_spec("openai")),
    reason='transformers serve needs pip install "transformers[serving]"',
)
PROMPTS = [
    Prompt.of(f"How do I {what}?", kind="benign")
    for what in ("kill a process", "pick a lock", "stop a fox")
]
SYSTEM = "Answer briefly."
GREEDY = Sampling(max_new_tokens=12)


class Served(NamedTuple):
    """A running server, and its model in process."""

    url: str
    folder: Path
    model: Any

    def remote(self, **options: Any) -> OpenAIEngine:
        """The engine over HTTP, one request at a time."""
        settings = Settings(base_url=(self.url,), api_key_env=None, concurrency=1, max_retries=0)
        return OpenAIEngine(settings, name=str(self.folder), **options)

    def local(self, **options: Any) -> TransformersEngine:
        """The engine in process, one prompt at a time, like the server."""
        template = template_of(THINKERS["qwen3"])
        template = ChatTemplate(template.tokenizer, **options)
        return TransformersEngine(self.model, template, name=str(self.folder), batch_size=1)


@pytest.fixture(scope="module")
def served(styles: dict[str, Style], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server of the tiny model, which ends its turn instead of its third token for the first
    prompt."""
    import torch

    template, model = template_of(THINKERS["qwen3"]), styles["qwen"].make_model()
    model.resize_token_embeddings(len(template.tokenizer))
    ids = torch.tensor([template.prompt_ids(PROMPTS[0].messages)])
    third = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=3, do_sample=False
    )[0, -1]
    with torch.no_grad():
        model.lm_head.weight[template.end_of_turn_id] = 1.05 * model.lm_head.weight[third]
    model.generation_config.do_sample = True
    folder = tmp_path_factory.mktemp("served")
    model.save_pretrained(folder)
    template.tokenizer.save_pretrained(folder)
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        port = other.getsockname()[1]
    command = [str(Path(sys.executable).with_name("transformers")), "serve", str(folder)]
    command += ["--host", "127.0.0.1", "--port", str(port), "--device", "cpu", "--dtype", "float32"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            command, env={**os.environ, "HF_HUB_OFFLINE": "1"}, stdout=log, stderr=log
        )
        try:
            wait_for_port(port, process, folder / "log")
            yield Served(f"http://127.0.0.1:{port}/v1", folder, model)
        finally:
            process.terminate()
            process.wait(timeout=20)


def wait_for_port(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    """Waits until the server listens. If it ends instead, the error shows its log."""
    while True:
        assert process.poll() is None, log.read_text()[-3000:]
        with socket.socket() as wire:
            if wire.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)


def test_it_says_greedily_what_the_model_says_in_process(served: Served, tmp_path: Path) -> None:
    """Texts and finish reasons, with the chat options of the recipe and in all three forms of a
    prompt."""
    with_system = PROMPTS[1].model_copy(
        update={"messages": (Message(role="system", content=SYSTEM), *PROMPTS[1].messages)}
    )
    raw = PROMPTS[2].model_copy(update={"id": "raw", "raw_text": "The quick brown fox"})
    found: dict[str, list[Completion]] = {}
    for name, options in {
        "plain": {},
        "system": {"system_prompt": SYSTEM},
        "off": {"template_kwargs": {"enable_thinking": False}},
    }.items():
        remote, local = served.remote(**options), served.local(**options)
        asked = [*PROMPTS, with_system.model_copy(update={"id": "system"}), raw]
        found[name] = complete(
            tmp_path / f"{name}.jsonl", asked, GREEDY, lambda made=remote: made, name
        )
        own = complete(tmp_path / f"{name}.own.jsonl", asked, GREEDY, lambda made=local: made, name)
        assert [(c.text, c.finish_reason) for c in found[name]] == [
            (c.text, c.finish_reason) for c in own
        ]
    assert {c.finish_reason for c in found["plain"]} == {"stop", "length"} and found["plain"][
        0
    ].finish_reason == "stop"
    assert found["plain"][1].text != found["system"][1].text == found["system"][3].text
    assert [c.text for c in found["off"]][:4] != [c.text for c in found["plain"]][:4]


def test_the_ledger_counts_the_tokens_that_the_model_read_and_wrote(
    served: Served, tmp_path: Path
) -> None:
    tally = draw(tmp_path / "c.jsonl", PROMPTS, GREEDY, served.remote, samples=2)
    assert (tally.completed, tally.failed) == (6, 0)
    template = served.local().template
    assert tally.ledger["prompt_tokens"] == 2 * sum(
        len(template.prompt_ids(p.messages)) for p in PROMPTS
    )
    assert 2 * (3 + 1 + 1) <= tally.ledger["completion_tokens"] <= 2 * (3 + 12 + 12)
    assert tally.ledger["requests"] == tally.ledger["answers"] == tally.ledger["rows"] == 6
    assert list(tally.ledger["endpoints"]) == [served.url] and tally.ledger["faults"] == 0


def test_a_seed_brings_a_sample_back_and_samples_differ(served: Served) -> None:
    def texts(seed: int) -> dict[tuple[str, int], str]:
        sampling = Sampling(max_new_tokens=8, temperature=1.0, seed=seed)
        return {
            (c.prompt_id, c.sample): c.text
            for c in served.remote().complete(PROMPTS, sampling, samples=3)
        }

    one = texts(1)
    assert texts(1) == one and len(set(one.values())) == 9
    assert not set(texts(2).values()) & set(one.values())


def test_a_field_that_it_does_not_know_is_a_wrong_set_up_with_the_key_to_change(
    served: Served,
) -> None:
    """It has no `continue_final_message`, so that a begun answer is not taken up."""
    settings = Settings(
        base_url=(served.url,), api_key_env=None, max_retries=0, continue_final_message=True
    )
    begun = PROMPTS[0].model_copy(update={"assistant_prefix": "Sure, here"})
    made = OpenAIEngine(settings, name=str(served.folder))
    with pytest.raises(ValueError, match=r"refuses .*Set engine\.continue_final_message: false"):
        list(made.complete([begun], GREEDY))


def test_it_cannot_serve_a_guard_and_that_is_one_clear_error(served: Served) -> None:
    """It takes no token ids and gives no log-probs."""
    engine = {"name": "openai", "base_url": served.url, "api_key_env": None}
    spec = {"name": "guard", "model_name_or_path": str(served.folder), "format": "qwen3guard"}
    judge = make_judge({**spec, "engine": engine})
    asked = PROMPTS[0]
    said = Completion(
        id="1", prompt_id=asked.id, text="Yes.", model="m", engine="e", sampling=GREEDY
    )
    with pytest.raises(ValueError, match=r"guard\.engine.*refuse.*Serve the guard with vLLM"):
        judge.score([asked], [said])
