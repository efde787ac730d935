"""A server on loopback that holds a real tiny model and serves LoRA adapters by name, as `vllm serve
--enable-lora` does, or as SGLang does.

    with lora_server(style.folder) as server:
        ...                                   # server.url, server.names, server.requests
        server.restart()                      # the port stays; what was loaded is forgotten

The model is loaded by transformers and the adapters by peft, from the folders that clients name. Texts
are greedy. Statuses and messages are those of vLLM's OpenAIServingModels (0.6 to 0.11: 400 for what
is loaded already, 404 for a name that is not known, 500 for a rank that is too high), and of SGLang's
http_server (400 and `error_message`).
"""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from openai_server import Answer, Request, Server
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer


def error(status: int, message: str, kind: str = "BadRequestError") -> Answer:
    """An error as vLLM words it."""
    body = {"error": {"message": message, "type": kind, "param": None, "code": status}}
    return Answer(status=status, payload=json.dumps(body).encode())


def no_route() -> Answer:
    """FastAPI's answer for an address that is not there."""
    return Answer(status=404, payload=b'{"detail":"Not Found"}')


class LoraServer(Server):
    """A server of one model and any number of adapters.

    Args:
        folder: the model's.
        name: what the server calls the model.
        updating: whether VLLM_ALLOW_RUNTIME_LORA_UPDATING is set.
        enabled: whether it was started with --enable-lora.
        max_rank: its --max-lora-rank.
        sglang: whether it speaks SGLang's protocol.
        modules: {name: folder} of --lora-modules.
        slow: seconds that each response takes.
    """

    def __init__(
        self,
        folder: Path,
        *,
        name: str = "base",
        updating: bool = True,
        enabled: bool = True,
        max_rank: int = 16,
        sglang: bool = False,
        modules: dict[str, Path] | None = None,
        slow: float = 0.0,
    ) -> None:
        self.name, self.updating, self.enabled = name, updating, enabled
        self.max_rank, self.sglang, self.slow = max_rank, sglang, slow
        self.folder, self.modules = folder, modules or {}
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.using = threading.RLock()
        self.names: dict[str, str] = {}
        """{name: folder} of what is loaded."""
        self.fill()
        super().__init__(self.served)

    def fill(self) -> None:
        """The model as it is after a start: with --lora-modules alone."""
        with self.using:
            self.model: Any = AutoModelForCausalLM.from_pretrained(self.folder).eval()
            self.names = {}
            for name, path in self.modules.items():
                assert self.load({"lora_name": name, "lora_path": str(path)}).status == 200

    restart = fill

    def listed(self) -> Answer:
        """The base and the adapters, as vLLM lists them."""
        rows: list[dict[str, Any]] = [{"id": self.name, "root": str(self.folder), "parent": None}]
        rows += [{"id": n, "root": path, "parent": self.name} for n, path in self.names.items()]
        return Answer(payload=json.dumps({"object": "list", "data": rows}).encode())

    def served(self, request: Request) -> Answer:
        """The answer to one request."""
        root = "" if self.sglang else "/v1"
        actions = {
            f"{root}/load_lora_adapter": self.load,
            f"{root}/unload_lora_adapter": self.unload,
        }
        if request.path in actions and (self.updating or self.sglang):
            with self.using:
                return self.in_sglangs_words(actions[request.path](request.body))
        if request.path != "/v1/chat/completions":
            return no_route()
        return self.complete(request.body)

    def in_sglangs_words(self, answer: Answer) -> Answer:
        """An answer about an adapter, in the form of the protocol."""
        if not self.sglang:
            return answer
        said = json.loads(answer.payload or b"{}").get("error", {}).get("message", "")
        good = answer.status == 200
        body = {"success": good, "error_message": said, "loaded_adapters": self.names}
        return Answer(status=200 if good else 400, payload=json.dumps(body).encode())

    def load(self, body: dict[str, str]) -> Answer:
        """Loads an adapter from its folder."""
        name, path = body.get("lora_name"), body.get("lora_path")
        if not name or not path:
            said = "Both 'lora_name' and 'lora_path' must be provided."
            return error(400, said, "InvalidUserInput")
        if name in self.names:
            said = f"The lora adapter '{name}' has already been loaded."
            return error(400, said, "InvalidUserInput")
        if not self.enabled:
            return error(500, "Call to add_lora method failed: LoRA is not enabled.")
        if not Path(path, "adapter_config.json").is_file():
            return error(404, f"Loading lora {name} failed: No adapter found for {path}")
        rank = json.loads(Path(path, "adapter_config.json").read_text())["r"]
        if rank > self.max_rank:
            said = f"LoRA rank {rank} is greater than max_lora_rank {self.max_rank}."
            return error(500, f"Call to add_lora method failed: {said}", "InternalServerError")
        if isinstance(self.model, PeftModel):
            self.model.load_adapter(path, adapter_name=name)
        else:
            self.model = PeftModel.from_pretrained(self.model, path, adapter_name=name).eval()
        self.names[name] = path
        return Answer(payload=f"Success: LoRA adapter '{name}' added successfully.".encode())

    def unload(self, body: dict[str, str]) -> Answer:
        """Takes an adapter out."""
        name = body.get("lora_name", "")
        if name not in self.names:
            return error(404, f"The lora adapter '{name}' cannot be found.", "NotFoundError")
        self.names.pop(name)
        if self.names:
            self.model.delete_adapter(name)
        else:
            self.model = self.model.unload()
        return Answer(payload=f"Success: LoRA adapter '{name}' removed successfully.".encode())

    def complete(self, body: dict[str, Any]) -> Answer:
        """A greedy response of the base, or through an adapter."""
        model = str(body["model"])
        # SGLang looks behind the colon alone; for vLLM an adapter's name is a model's
        adapter = model.partition(":")[2] if self.sglang else model.removeprefix(self.name)
        with self.using:
            if adapter and adapter not in self.names:
                if self.sglang:
                    said = f"The following requested LoRA adapters are not loaded: {adapter}"
                    return error(400, f"{said}\nLoaded adapters: {[*self.names]}.")
                return error(404, f"The model `{adapter}` does not exist.", "NotFoundError")
            text = self.said(body, adapter)
        return Answer(text, delay_seconds=self.slow)

    def said(self, body: dict[str, Any], adapter: str) -> str:
        """The model's text, through the adapter of this name if there is one."""
        ids = self.tokenizer.apply_chat_template(
            body["messages"], add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        model, length = self.model, ids["input_ids"].shape[1]
        with torch.no_grad():
            options = {"max_new_tokens": body["max_tokens"], "do_sample": False}
            if adapter:
                model.set_adapter(adapter)
                made = model.generate(**ids, **options)
            elif isinstance(model, PeftModel):
                with model.disable_adapter():
                    made = model.generate(**ids, **options)
            else:
                made = model.generate(**ids, **options)
        return str(self.tokenizer.decode(made[0][length:], skip_special_tokens=True))


@contextmanager
def lora_server(folder: Path, **options: Any) -> Iterator[LoraServer]:
    """A server for the length of a `with`."""
    server = LoraServer(folder, **options)
    server.start()
    try:
        yield server
    finally:
        server.stop()
