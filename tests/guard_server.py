"""A guard behind OpenAI's plain completions on loopback: a real tiny model that answers greedily.

    with serving(GuardModel(folder, speaks="vllm")) as server:
        ...

It speaks as one of three servers does, as their sources have it:

- `vllm`: log-probs of the tokens in `logprob_token_ids`, tokens named "token_id:7", and their ids.
- `old vllm`: the field `logprob_token_ids` is not known, and no ids beside the log-probs.
- `sglang`: tokens named by their texts, the most likely first, and their ids.

As at these servers a prompt that is a text gets the special tokens of the tokenizer, unknown fields
are ignored, and the token that ends an answer is among its ids.
"""

import json
import threading
from pathlib import Path
from typing import Any, Literal

from openai_server import Answer, Request, fails, raw

Speech = Literal["vllm", "old vllm", "sglang"]
MOST_LOGPROBS = 20


class GuardModel:
    """A script of `openai_server` that runs the model of a folder."""

    def __init__(self, folder: Path, speaks: Speech = "vllm") -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype="float32").eval()
        self.speaks = speaks
        self.lock = threading.Lock()

    def __call__(self, request: Request) -> Answer:
        body = request.body
        if request.path != "/v1/completions":
            return Answer(status=404, payload=b'{"detail":"Not Found"}')
        if body["logprobs"] > MOST_LOGPROBS:
            return fails(
                400,
                f"Requested sample logprobs of {body['logprobs']}, which is greater than max "
                f"allowed: {MOST_LOGPROBS}",
                param="logprobs",
            )
        prompt = body["prompt"]
        ids = self.tokenizer(prompt)["input_ids"] if isinstance(prompt, str) else prompt
        assert body["temperature"] == 0
        with self.lock:
            written, rows = self.written(ids, body["max_tokens"], set(body["stop_token_ids"]))
        return raw(json.dumps(self.reply(body, ids, written, rows)).encode())

    def written(self, ids: list[int], most: int, stops: set[int]) -> tuple[list[int], list[Any]]:
        """(the ids that the model writes, the log-probs of all tokens at each)."""
        import torch

        found: list[int] = []
        rows = []
        stops |= {self.tokenizer.eos_token_id}
        new, past = ids, None
        with torch.inference_mode():
            while len(found) < most and not (found and found[-1] in stops):
                out = self.model(torch.tensor([new]), past_key_values=past, use_cache=True)
                rows.append(out.logits[0, -1].double().log_softmax(-1))
                found.append(int(out.logits[0, -1].argmax()))
                new, past = found[-1:], out.past_key_values
        return found, rows

    def reply(
        self, body: dict[str, Any], ids: list[int], written: list[int], rows: list[Any]
    ) -> dict[str, Any]:
        """The body of a completion, in the server's own words."""
        wanted = body.get("logprob_token_ids") if self.speaks == "vllm" else None
        top = []
        for token, row in zip(written, rows, strict=True):
            shown = wanted or row.topk(min(body["logprobs"], len(row))).indices.tolist()
            named: dict[str, float] = {}
            for i in [token, *shown] if self.speaks != "sglang" else shown:
                named.setdefault(self.name(i), float(row[i]))
            top.append(named)
        logprobs = {
            "tokens": [self.name(i) for i in written],
            "token_logprobs": [float(row[i]) for i, row in zip(written, rows, strict=True)],
            "top_logprobs": top,
            "text_offset": [0] * len(written),
        }
        choice: dict[str, Any] = {
            "index": 0,
            "text": self.tokenizer.decode(written, skip_special_tokens=True),
            "logprobs": logprobs,
            "finish_reason": "stop" if len(written) < body["max_tokens"] else "length",
        }
        if self.speaks != "old vllm" and body.get("return_token_ids"):
            choice |= {"token_ids": written}
            choice |= {"prompt_token_ids": ids} if self.speaks == "vllm" else {}
        usage = {"prompt_tokens": len(ids), "completion_tokens": len(written)}
        return {
            "id": "cmpl-1",
            "object": "text_completion",
            "created": 0,
            "model": body["model"],
            "choices": [choice],
            "usage": {**usage, "total_tokens": sum(usage.values())},
        }

    def name(self, token: int) -> str:
        """A token as the server names it."""
        return self.tokenizer.decode([token]) if self.speaks == "sglang" else f"token_id:{token}"
