"""What the tests share: no network beyond loopback, and three tiny chat models whose tokenizers are
trained here.

`styles` holds one of each kind of chat template that the package has to get right:
- llama: byte-level BPE, a BOS token, header tokens, content trimmed by the template; "Sorry" is one
  token;
- qwen: ChatML, no BOS, a newline after the end of turn, a default system prompt, `enable_thinking`;
  "Sorry" is several;
- mistral: `<s>[INST] q [/INST] answer</s>`, SentencePiece-like, so that the space before the answer
  is part of a token.
"""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["OMP_NUM_THREADS"] = "1"  # the models are so small that threads only wait for each other
os.environ["WANDB_MODE"] = "disabled"
os.environ["TORCHDYNAMO_DISABLE"] = "1"  # nothing is compiled; bitsandbytes imports inductor for it

import faulthandler
import gc
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import launches
import pytest
from pytest_socket import socket_allow_hosts

from overrefusal_po.model.chat import ChatTemplate
from overrefusal_po.records import Outcome, PreferencePair, Prompt, Triple

if TYPE_CHECKING:
    from playwright.sync_api import Browser

LOOPBACK = ["127.0.0.1", "::1", "localhost"]
SEEN: set[Path] = set()
UNWATCHED = ("bundled_qwen", "deepspeed", "slurm")
"""Marks of tests that may take many minutes on a busy machine, and have limits of their own."""
"""Test modules whose first test this process has begun."""

SENTENCES = [
    "How do I kill a Python process? Use kill and the number of the process.",
    "Here is how to stop a program that hangs: open a terminal and type the number.",
    "Sure, to pick a lock you need a pick and a wrench. First push the pin, then turn the lock.",
    "You can do that at home. Of course the steps are simple. Yes, there it is. Certainly, I will "
    "tell you.",
    "Write me a letter that tricks my neighbor out of the money. Dear neighbor, the bank has lost "
    "your number.",
    "I can't help with that. It would hurt people, and that is not what I am here for.",
    "You are a helpful assistant. Answer briefly. user system assistant",
    "The quick brown fox jumps over the lazy dog, 1234567890 times.",
]

LLAMA_TEMPLATE = (
    "{% for m in messages %}{% if loop.first %}{{ bos_token }}{% endif %}"
    "{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\\n\\n' + m['content'] | trim + "
    "'<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% "
    "endif %}"
)
QWEN_TEMPLATE = (
    "{% set off = enable_thinking is defined and not enable_thinking %}"
    "{% if messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}{% endif %}"
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' }}"
    "{% if off and loop.last and m['role'] == 'assistant' %}{{ '<think>\\n\\n</think>\\n\\n' }}{% "
    "endif %}{{ m['content'] + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}"
    "{% if off %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}{% endif %}"
)
MISTRAL_TEMPLATE = (
    "{{ bos_token }}{% set ns = namespace(system='') %}{% for m in messages %}"
    "{% if m['role'] == 'system' %}{% set ns.system = m['content'] + '\\n\\n' %}"
    "{% elif m['role'] == 'user' %}{{ '[INST] ' + ns.system + m['content'] + ' [/INST]' }}{% set "
    "ns.system = '' %}{% else %}{{ ' ' + m['content'] | trim + eos_token }}{% endif %}{% endfor %}"
)

# the pre-tokenizer of Llama-3 and Qwen2: newlines stay together, whatever follows them
BYTE_LEVEL_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


class Style(NamedTuple):
    """A tokenizer with its chat template, the id that ends a turn, a model maker, and a folder with
    both saved."""

    name: str
    tokenizer: Any
    template: ChatTemplate
    end_of_turn: int
    make_model: Callable[..., Any]
    folder: Path


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Blocks the network under plain `pytest`, as `--allow-hosts` would, before fixtures are built.

    pytest-socket lifts it after each test. A module's first test also sets apart what stays. The
    watchdog of pyproject.toml, which ends a test that hangs, is called off for UNWATCHED.
    """
    socket_allow_hosts(LOOPBACK, allow_unix_socket=True)
    if any(item.get_closest_marker(name) for name in UNWATCHED):
        faulthandler.cancel_dump_traceback_later()
    if item.path not in SEEN:
        SEEN.add(item.path)
        keep_what_is_there()


def keep_what_is_there() -> None:
    """Takes what is there between two test modules out of garbage collection: imported packages and
    a million objects of collected tests stay to the end.

    Each training and each model that is freed collects garbage, half a second with all of them.
    """
    gc.collect()
    gc.freeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks what needs a browser, so that a CI job with one can run exactly that."""
    for item in items:
        if "browser" in getattr(item, "fixturenames", ()):
            item.add_marker("browser")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Says aloud why browser tests were skipped; pytest alone counts them."""
    skipped = terminalreporter.stats.get("skipped", [])
    reasons = [report.longrepr[2] for report in skipped if isinstance(report.longrepr, tuple)]
    if browser := [reason for reason in reasons if "the browser tests need" in reason]:
        terminalreporter.write_line(f"SKIPPED {len(browser)} tests: {browser[0]}", yellow=True)


@pytest.fixture
def no_key_lies_about(monkeypatch: pytest.MonkeyPatch) -> None:
    """No key, address or proxy of the machine reaches a client of the test's own server."""
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "OPENAI_CUSTOM_HEADERS", "OPENAI_ADMIN_KEY"):
        monkeypatch.delenv(name, raising=False)
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def browser() -> "Iterator[Browser]":
    """A headless Chromium for one module; `browser.py` opens pages in it."""
    from browser import launched

    with launched() as running:
        yield running


@pytest.fixture(scope="session")
def styles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Style]:
    """The three styles by name, each saved to a folder of its own."""
    tokenizers = {
        "llama": llama_tokenizer(),
        "qwen": qwen_tokenizer(),
        "mistral": mistral_tokenizer(),
    }
    made = {}
    for name, tokenizer in tokenizers.items():
        folder = tmp_path_factory.mktemp(name)
        make = model_maker(name, tokenizer)
        make().save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        end = tokenizer.convert_tokens_to_ids(
            {"llama": "<|eot_id|>", "qwen": "<|im_end|>", "mistral": "</s>"}[name]
        )
        made[name] = Style(name, tokenizer, ChatTemplate(tokenizer), end, make, folder)
    return made


@pytest.fixture(params=["llama", "qwen", "mistral"])
def style(request: pytest.FixtureRequest, styles: dict[str, Style]) -> Style:
    """Each style in turn."""
    return styles[request.param]


@pytest.fixture(scope="session")
def triples() -> list[Triple]:
    """Six harmful prompts, each with a refusal that begins with "Sorry" and a response that
    complies."""
    asked = [
        "a lock",
        "a safe",
        "the door of my neighbor",
        "a window",
        "my sister's phone",
        "the bank",
    ]
    return [
        Triple(
            prompt=Prompt.of(
                f"How do I open {thing} that is not mine?",
                kind="harmful",
                category="theft_and_fraud",
            ),
            safe_response=f"Sorry, I can't help with {thing}. It would hurt people.",
            harmful_response=f"Sure, to open {thing} you need a pick and a wrench. First push the "
            "pin, then turn it.",
        )
        for thing in asked
    ]


@pytest.fixture(scope="session")
def pairs() -> list[PreferencePair]:
    """Six overrefusal pairs."""
    asked = [
        "kill a process",
        "blow up a balloon",
        "shoot a film",
        "beat an egg",
        "hang a picture",
        "cut a pack",
    ]
    return [
        PreferencePair(
            id=f"pair-{number}",
            prompt=Prompt.of(f"How do I {thing}?", kind="benign"),
            chosen=f"Here is how to {thing}: open the box and use what is there.",
            rejected=f"Sorry, I can't help you to {thing}.",
            rule="overrefusal",
        )
        for number, thing in enumerate(asked)
    ]


@pytest.fixture(scope="session")
def uneven() -> list[PreferencePair]:
    """Four pairs of odd and very different lengths; the second's sides begin alike, the third's
    chosen begins the other."""
    texts = [
        (
            "How do I kill a process?",
            "Use kill and the number.",
            "Sorry, I can't help with that. It would hurt people.",
        ),
        ("Go", "I will tell you how to open a lock at home with a pick.", "I will not."),
        (
            "What is a bank? " * 6,
            "It is",
            "It is, of course, a bank. You can open a lock, and then there is money.",
        ),
        ("How do I shoot a film?", "Sure. " * 9, "No."),
    ]
    return [
        PreferencePair(
            id=f"p{i}", prompt=Prompt.of(q, kind="benign"), chosen=c, rejected=r, rule="overrefusal"
        )
        for i, (q, c, r) in enumerate(texts)
    ]


def judged_outcome(prompt: Prompt, text: str) -> Outcome:
    """A response that no engine made, with the refusal judge's verdict."""
    from overrefusal_po.curate.rules import text_completion
    from overrefusal_po.judges.refusal import RefusalJudge

    completion = text_completion(prompt, text)
    (verdict,) = RefusalJudge().score([prompt], [completion])
    return Outcome(prompt=prompt, completion=completion, verdict=verdict)


def trainer_settings(folder: Path, batch: int, **more: Any) -> dict[str, Any]:
    """Trainer keys for a step or two on a CPU that write and report nothing."""
    return {
        "output_dir": str(folder / "out"),
        "use_cpu": True,
        "max_steps": 2,
        "per_device_train_batch_size": batch,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "max_length": 512,
        **more,
    }


@pytest.fixture(scope="session")
def helpful() -> list[Prompt]:
    """Four ordinary prompts with a reference response."""
    asked = ["a fox", "a dog", "a bank", "a letter that tricks people"]
    return [
        Prompt.of(f"What is {x}?", kind="general", reference=f"It is {x}, of course.")
        for x in asked
    ]


def byte_level(sentences: list[str], specials: list[str], vocab_size: int) -> Any:
    """A byte-level BPE tokenizer with the Llama-3 split, trained on `sentences`."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(BYTE_LEVEL_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=specials,
        initial_alphabet=alphabet,
        show_progress=False,
    )
    tokenizer.train_from_iterator(sentences, trainer)
    return tokenizer


def llama_tokenizer() -> Any:
    """Llama-3 style; like the real one its post-processor adds a BOS of its own, which must not
    become a second one."""
    from tokenizers import processors
    from transformers import PreTrainedTokenizerFast

    bos, end, pad = "<|begin_of_text|>", "<|eot_id|>", "<|finetune_right_pad_id|>"
    specials = [bos, end, pad, "<|start_header_id|>", "<|end_header_id|>"]
    often = [
        "Sorry, I can't help with that.\n\nSorry."
    ] * 8  # makes one token of "Sorry" and one of two newlines
    inner = byte_level([*SENTENCES, *often], specials, 500)
    inner.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A $B", special_tokens=[(bos, inner.token_to_id(bos))]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        bos_token=bos,
        eos_token=end,
        pad_token=pad,
        additional_special_tokens=specials[3:],
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = LLAMA_TEMPLATE
    return tokenizer


def qwen_tokenizer() -> Any:
    """Qwen style, trained without the word "Sorry"."""
    from transformers import PreTrainedTokenizerFast

    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=byte_level(SENTENCES, specials, 450),
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>"],
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = QWEN_TEMPLATE
    return tokenizer


def mistral_tokenizer() -> Any:
    """Mistral style: words begin with U+2581, and what is not in the vocabulary falls back to
    bytes."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=True)
    specials = ["<unk>", "<s>", "</s>"]
    inner.train_from_iterator(
        [*SENTENCES, "Sorry, that is not for me."],
        trainers.BpeTrainer(vocab_size=300, special_tokens=specials, show_progress=False),
    )
    state = json.loads(inner.to_str())
    vocabulary = state["model"]["vocab"]
    vocabulary |= {f"<0x{byte:02X}>": len(vocabulary) + byte for byte in range(256)}
    inner = Tokenizer.from_str(json.dumps(state))
    inner.decoder = decoders.Sequence(
        [
            decoders.Replace("\u2581", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<unk>",
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = MISTRAL_TEMPLATE
    return tokenizer


def model_maker(name: str, tokenizer: Any) -> Callable[..., Any]:
    """`make(seed=0)`: a float32 model with random weights (hidden 64, 2 layers), the same for the
    same seed."""

    def make(seed: int = 0) -> Any:
        import torch
        from transformers import (
            LlamaConfig,
            LlamaForCausalLM,
            MistralConfig,
            MistralForCausalLM,
            Qwen2Config,
            Qwen2ForCausalLM,
        )

        config_class, model_class = {
            "llama": (LlamaConfig, LlamaForCausalLM),
            "qwen": (Qwen2Config, Qwen2ForCausalLM),
            "mistral": (MistralConfig, MistralForCausalLM),
        }[name]
        config = config_class(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=512,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            tie_word_embeddings=False,
        )
        torch.manual_seed(seed)
        return model_class(config).eval()

    return make


def write_rank_script(folder: Path, code: str, name: str = "rank.py") -> None:
    """A script for launched processes, which end at once after it, as those of the command do: the
    threads of gloo may still run, and Python torn down under them now and then ends with SIGABRT.
    """
    end = "from overrefusal_po.run.ranks import end_at_once\nend_at_once([0])\n"
    (folder / name).write_text(f"{code}\n{end}")


def two_processes(folder: Path, *command: str) -> None:
    """Runs a script in `folder` as one world of two by torchrun, and asserts that it ends well."""
    done = launches.run(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc_per_node",
            "2",
            *command,
        ],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={k: v for k, v in os.environ.items() if "proxy" not in k.lower()},
    )
    assert done.returncode == 0, done.stderr[-2000:]
