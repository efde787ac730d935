"""The tiny chat model of the tests, for benchmarks of everything but speed: a tokenizer that is
trained here, two layers, random weights.

    write_tiny_model(folder)
"""

import sys
from pathlib import Path


def write_tiny_model(folder: Path) -> Path:
    """Writes model and tokenizer of the `llama` style to a folder."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    from conftest import llama_tokenizer, model_maker

    tokenizer = llama_tokenizer()
    model_maker("llama", tokenizer)().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
