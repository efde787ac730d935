"""Bundled models in parts: found, joined, checked, converted from GGUF, and their cache."""

import hashlib
import json
import re
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import tiny_gguf
from conftest import Style

from overrefusal_po.model import bundled, stamps
from overrefusal_po.model import load as models
from overrefusal_po.model.gguf import model_from_gguf

ROOT = Path(__file__).parents[1]
QWEN = ("qwen2.5-coder-0.5b-instruct", "qwen2.5-coder-1.5b-instruct")
SIZES = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}


def tiny_model(architecture: str, tokenizer: Any, *, tied: bool = False) -> Any:
    """A model of an architecture with random weights."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model(
        architecture,
        vocab_size=len(tokenizer),
        tie_word_embeddings=tied,
        eos_token_id=tokenizer.eos_token_id,
        initializer_range=0.2,
        **SIZES,
    )
    return AutoModelForCausalLM.from_config(config).eval()


def logits(model: Any) -> Any:
    import torch

    with torch.inference_mode():
        return model(torch.tensor([[5, 17, 3, 40, 41]])).logits


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("tied", [False, True])
def test_any_architecture_is_saved_as_the_model_that_it_was(
    architecture: str, tied: bool, styles: dict[str, Style], tmp_path: Path
) -> None:
    import torch

    tokenizer = styles["qwen"].tokenizer
    original = tiny_model(architecture, tokenizer, tied=tied)
    source = tiny_gguf.write_gguf(tmp_path / "tiny.gguf", original, tokenizer)
    model, read = model_from_gguf(source, "float32", ties=tied)
    model.save_pretrained(tmp_path / "saved")
    read.save_pretrained(tmp_path / "saved")
    loaded = models.load_model(str(tmp_path / "saved"), dtype="float32")
    assert type(loaded) is type(original)
    assert torch.allclose(logits(loaded), logits(original), atol=1e-5)
    assert loaded.num_parameters() == original.num_parameters()
    text = "How do I kill a process? Sure."
    turn = [{"role": "user", "content": text}]
    mine = models.load_tokenizer(str(tmp_path / "saved"))
    assert mine(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert mine.decode(mine(text)["input_ids"]) == text
    assert mine.apply_chat_template(turn, tokenize=False) == tokenizer.apply_chat_template(
        turn, tokenize=False
    )


@pytest.mark.parametrize("finer", ["embedding", "head"])
def test_a_matrix_that_the_file_holds_twice_is_kept_once_in_its_finer_form(
    finer: str, styles: dict[str, Style], tmp_path: Path
) -> None:
    import torch

    tokenizer = styles["qwen"].tokenizer
    original = tiny_model("qwen2", tokenizer, tied=True)
    coarser = "head" if finer == "embedding" else "embedding"
    kinds = {finer: tiny_gguf.FINE, coarser: tiny_gguf.COARSE}
    source = tiny_gguf.write_gguf(tmp_path / "tiny.gguf", original, tokenizer, **kinds)
    model, _ = model_from_gguf(source, "bfloat16", ties=True)
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert model.num_parameters() == original.num_parameters()
    assert model.dtype == torch.bfloat16 and model.config.tie_word_embeddings
    rows = [m.get_input_embeddings().weight.detach().float() for m in (model, original)]
    off = float((rows[0] - rows[1]).abs().max() / rows[1].abs().max())
    assert off < 0.01, "Q8_0 in bfloat16 is off by 1/256; Q5_0 by 1/32"
    untied, _ = model_from_gguf(source, "bfloat16", ties=False)
    assert untied.num_parameters() == original.num_parameters() + rows[1].numel()


def test_two_different_matrices_are_not_tied(styles: dict[str, Style], tmp_path: Path) -> None:
    tokenizer = styles["qwen"].tokenizer
    source = tiny_gguf.write_gguf(tmp_path / "tiny.gguf", tiny_model("qwen2", tokenizer), tokenizer)
    with pytest.raises(ValueError, match=r"tiny\.gguf: embedding and head cannot be tied, since"):
        model_from_gguf(source, "float32", ties=True)


class Parts(NamedTuple):
    """Packages that ship a tiny model in three parts, and the folder on sys.path."""

    site: Path
    cache: Path
    content: bytes


@pytest.fixture(scope="session")
def gguf_bytes(styles: dict[str, Style], tmp_path_factory: pytest.TempPathFactory) -> bytes:
    tokenizer = styles["qwen"].tokenizer
    source = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    kinds = {"embedding": tiny_gguf.COARSE, "head": tiny_gguf.FINE}
    model = tiny_model("qwen2", tokenizer, tied=True)
    return tiny_gguf.write_gguf(source, model, tokenizer, **kinds).read_bytes()


@pytest.fixture
def parts(gguf_bytes: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Parts:
    """`bundled:tiny` in 11 parts: part10 comes after part9, not after part1."""
    site = tmp_path / "site"
    entry = bundled.in_parts(
        "tiny-model", 11, "1.2", sha256=hashlib.sha256(gguf_bytes).hexdigest(), hub_name="a/tiny"
    )
    step = -(-len(gguf_bytes) // 11)
    for at, (package, file) in enumerate(zip(entry.packages, entry.files, strict=True)):
        tiny_gguf.install(site, package, "1.2", file, gguf_bytes[at * step : (at + 1) * step])
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setitem(bundled.BUNDLED, "tiny", entry)
    monkeypatch.setenv("OVERREFUSAL_PO_CACHE", str(tmp_path / "cache"))
    return Parts(site, tmp_path / "cache" / "bundled", gguf_bytes)


def cached(parts: Parts) -> list[str]:
    """What the cache holds beside locks."""
    return [p.name for p in parts.cache.iterdir() if not p.name.endswith(".lock")]


def test_parts_are_joined_in_the_order_of_their_numbers_and_never_imported(parts: Parts) -> None:
    folder = Path(models.resolve("bundled:tiny"))
    assert cached(parts) == [folder.name], "the joined file is gone"
    model = models.load_model("bundled:tiny", dtype="float32")
    assert model.config.tie_word_embeddings and model.config.model_type == "qwen2"
    assert json.loads((folder / "config.json").read_text())["dtype"] == "bfloat16"
    assert set(json.loads((folder / "converted.json").read_text())["files"]) == {
        p.name for p in folder.iterdir() if p.name != "converted.json"
    }
    models.check_available("bundled:tiny")
    assert models.load_tokenizer("bundled:tiny").chat_template


def test_a_part_with_other_content_is_refused_before_anything_reads_it(parts: Parts) -> None:
    part = parts.site / "tiny_model_part7" / "data" / "part07.bin"
    part.write_bytes(b"x" + part.read_bytes()[1:])
    with pytest.raises(ValueError, match=r"joined from .*part01\.bin.* has the SHA-256 ") as caught:
        models.resolve("bundled:tiny")
    assert "make models" in str(caught.value)
    assert cached(parts) == []


@pytest.mark.parametrize("ask", [models.resolve, models.check_available])
def test_a_missing_part_is_one_sentence_that_names_make_models(ask: Any, parts: Parts) -> None:
    shutil.rmtree(parts.site / "tiny_model_part3-1.2.dist-info")
    with pytest.raises(ValueError, match="tiny-model-part3, which is not installed") as caught:
        ask("bundled:tiny")
    assert "Run: make models" in str(caught.value) and "\n" not in str(caught.value)
    shutil.rmtree(parts.site / "tiny_model_part11-1.2.dist-info")
    with pytest.raises(
        ValueError, match=r"11 Python packages, of which 2 .*part3 to tiny-model-part11\)"
    ):
        ask("bundled:tiny")


def test_a_part_of_another_version_is_named(parts: Parts) -> None:
    shutil.rmtree(parts.site / "tiny_model_part3-1.2.dist-info")
    shutil.rmtree(parts.site / "tiny_model_part3")
    tiny_gguf.install(parts.site, "tiny-model-part3", "1.3", "part03.bin", b"")
    with pytest.raises(
        ValueError, match=r"needs version 1\.2 .* installed is tiny-model-part3 1\.3"
    ):
        models.resolve("bundled:tiny")


def test_a_part_without_its_file_is_named(parts: Parts) -> None:
    (parts.site / "tiny_model_part3" / "data" / "part03.bin").unlink()
    with pytest.raises(ValueError, match=r"tiny-model-part3 is installed, but without part03\.bin"):
        models.resolve("bundled:tiny")


def damage(folder: Path, how: str) -> str:
    """Damages a cache folder in one way; returns what the log must say."""
    if how.startswith("edit "):
        file = folder / how.removeprefix("edit ")
        file.write_bytes(file.read_bytes().replace(b"e", b"f", 1))
        return f"{file.name} was changed"
    if how == "torn weights":
        weights = folder / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-9])
        return "model.safetensors was changed"
    if how == "added":
        (folder / "adapter_config.json").write_text("{}")
        return "adapter_config.json was added"
    if how == "lost":
        (folder / "generation_config.json").unlink()
        return "generation_config.json is missing"
    stamp = folder / "converted.json"
    text = stamp.read_text()
    torn = {"torn stamp": text[:40], "stamp of a list": "[1]", "empty stamp": "", "no files": "{}"}
    if how == "other source":
        stamp.write_text(text.replace('"source_sha256": "', '"source_sha256": "0'))
        return "converted.json names another source"
    stamp.write_text(torn[how])
    return "converted.json is missing or cannot be read"


@pytest.mark.parametrize(
    "how",
    [
        "edit config.json",
        "edit tokenizer.json",
        "edit chat_template.jinja",
        "edit generation_config.json",
        "torn weights",
        "added",
        "lost",
        "torn stamp",
        "stamp of a list",
        "empty stamp",
        "no files",
        "other source",
    ],
)
def test_a_damaged_cache_is_named_and_made_again(
    how: str, parts: Parts, caplog: pytest.LogCaptureFixture
) -> None:
    folder = Path(models.resolve("bundled:tiny"))
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    wanted = damage(folder, how)
    assert stamps.cache_fault(folder, bundled.BUNDLED["tiny"].sha256) == wanted
    models.resolve("bundled:tiny")
    assert f"{folder}: {wanted}; converting the bundled model again" in caplog.text
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before


def test_a_whole_cache_is_left_alone_and_what_a_kill_left_is_removed(parts: Parts) -> None:
    folder = Path(models.resolve("bundled:tiny"))
    weights = folder / "model.safetensors"
    before = weights.stat().st_mtime_ns
    models.resolve("bundled:tiny")
    assert weights.stat().st_mtime_ns == before
    left = folder.with_name(f"{folder.name}.4242.tmp")
    left.mkdir()
    (left / "joined.gguf").write_bytes(b"half")
    weights.unlink()
    models.resolve("bundled:tiny")
    assert cached(parts) == [folder.name]


def test_a_cache_that_cannot_be_written_is_a_sentence(parts: Parts) -> None:
    parts.cache.mkdir(parents=True)
    entry = bundled.BUNDLED["tiny"]
    folder = parts.cache / f"tiny-{entry.sha256[:8]}-{bundled.LAYOUT}"
    folder.write_text("a file where the folder belongs")
    with pytest.raises(ValueError, match=r"'tiny' cannot be converted into .*OVERREFUSAL_PO_CACHE"):
        models.resolve("bundled:tiny")
    assert folder.is_file()


def test_a_disk_without_room_is_found_before_anything_is_written(tmp_path: Path) -> None:
    bundled.check_room(tmp_path, 0)
    with pytest.raises(OSError, match=r"needs 1000000000\.0 GB of disk, and [\d.]+ GB are free"):
        bundled.check_room(tmp_path, 10**18)


def test_an_unknown_bundled_name_lists_all() -> None:
    with pytest.raises(ValueError) as caught:
        models.resolve("bundled:qwen2.5-coder-7b-instruct")
    listed = re.findall(r"bundled:[\w.-]+\w", str(caught.value).partition("Allowed: ")[2])
    assert listed == [f"bundled:{key}" for key in bundled.BUNDLED]
    assert set(QWEN) < set(bundled.BUNDLED)


def test_what_make_models_installs_is_what_the_program_looks_for() -> None:
    """Each package with its exact version and hash, and NOTICE with the SHA-256 of the whole."""
    lines = (ROOT / "requirements-models.txt").read_text().splitlines()
    pinned = [line.split()[0] for line in lines if not line.startswith("#")]
    wanted = [
        f"{p}=={bundled.BUNDLED[k].version}" for k in QWEN for p in bundled.BUNDLED[k].packages
    ]
    assert pinned == wanted
    hashes = re.findall(r" --hash=sha256:[0-9a-f]{64}$", "\n".join(lines), re.MULTILINE)
    assert len(hashes) == len(wanted) == len(set(hashes))
    notice = (ROOT / "NOTICE").read_text()
    for key, entry in bundled.BUNDLED.items():
        assert f"bundled:{key}\n" in notice and entry.sha256 in notice and entry.hub_name in notice
    rules = (ROOT / "Makefile").read_text()
    command = re.search(r"^models: setup\n\t(.*)$", rules, re.MULTILINE)
    assert command and "--no-deps --require-hashes --only-binary :all:" in command[1]
    assert rules.count("requirements-models.txt") == 1, "only make models needs them"
