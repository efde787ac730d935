"""Whether a model's name is a folder that can hold a model; nothing is loaded for this.

    is_model_folder("runs/dpo-1a2b/model")      # True; ValueError for a folder without config.json
    is_model_folder("my/model")                 # False: a hub name

Imports no torch.
"""

from __future__ import annotations

from pathlib import Path

from overrefusal_po.json_files import is_too_long


def is_model_folder(name: str) -> bool:
    """Whether a name is a folder here. ValueError if that is no model, and for a file."""
    place = Path(name)
    if is_too_long(place):
        raise ValueError(
            f"The model {name[:60]!r}... cannot be found: no folder and no model of the hub has so "
            f"long a name ({len(name)} letters). Give the path of a model, or a hub name."
        )
    if place.is_file():
        raise ValueError(
            f"{name}: this is a file, and a model is a folder with config.json, weights and a "
            f"tokenizer. Give the folder: {place.parent}."
        )
    if not place.is_dir():
        return False
    if (place / "adapter_config.json").is_file():
        raise ValueError(
            f"{name}: this is an adapter alone. Give the merged model: model/ beside adapter/ "
            "in a run, or what peft's merge_and_unload() gives, saved with its tokenizer."
        )
    if not (place / "config.json").is_file():
        raise ValueError(f"{name}: this folder holds no model (there is no config.json in it).")
    return True
