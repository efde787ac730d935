"""A `model:` in 4 or 8 bits needs bitsandbytes, which is said before anything is loaded.

check_quantiser({"model_name_or_path": "my/model", "load_in_4bit": True})    # ValueError without it
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping


def check_quantiser(section: Mapping[str, object]) -> None:
    """Raises ValueError if a `model:` asks for 4 or 8 bits and bitsandbytes is not there."""
    bits = next((key for key in ("load_in_4bit", "load_in_8bit") if section.get(key)), None)
    if bits and importlib.util.find_spec("bitsandbytes") is None:
        raise ValueError(
            f'model.{bits} needs the package bitsandbytes: pip install "overrefusal-po[qlora]", or '
            f"take {bits} out."
        )
