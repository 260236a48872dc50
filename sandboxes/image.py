"""An image for the `docker` sandbox from this machine's own Python, for where no registry is in reach."""

from __future__ import annotations

import hashlib
import io
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import IO, Any

REPOSITORY = "gymrl-sandbox"
_LEFT_OUT = {
    "site-packages",
    "dist-packages",
    "test",
    "tests",
    "idlelib",
    "lib2to3",
    "ensurepip",
    "turtledemo",
    "tkinter",
}
COMMANDS = """
sh bash ls cat cp mv rm mkdir sleep true false env grep sed head tail awk basename chmod cmp comm cut date dd diff
dirname du expr find gzip id ln mkfifo mktemp nl od patch readlink realpath rmdir seq setsid sha256sum sort stat tar tee
test timeout touch tr uname uniq wc which xargs yes
"""


def tag() -> str:
    """The image's name: it follows from the Python and this module."""
    facts = f"{sys.version}{os.path.realpath(sys.executable)}{os.stat(os.__file__).st_mtime_ns}"
    source = Path(__file__).read_bytes()
    return f"{REPOSITORY}:{hashlib.sha256(facts.encode() + source).hexdigest()[:12]}"


def ensure_image(client: Any) -> str:
    """The image's name; it is made if it is not there (seconds)."""
    import docker

    name = tag()
    try:
        client.images.get(name)
    except docker.errors.ImageNotFound:
        with tempfile.NamedTemporaryFile(suffix=".tar") as file:
            write_tar(file)
            file.flush()
            repository, _, version = name.partition(":")
            client.api.import_image(
                src=file.name, repository=repository, tag=version, changes=['CMD ["python3"]']
            )
    return name


def write_tar(file: IO[bytes]) -> None:
    """A root file system with Python, its libraries, and a few commands."""
    binary = os.path.realpath(sys.executable)
    standard = os.path.realpath(os.path.dirname(os.__file__))
    commands = [path for name in COMMANDS.split() if (path := shutil.which(name, path="/usr/bin:/bin"))]
    extensions = [str(path) for path in Path(standard, "lib-dynload").glob("*.so")]
    places = {binary, *commands, *libraries([binary, *commands, *extensions])}
    with tarfile.open(fileobj=file, mode="w") as tar:
        folders: set[str] = set()
        for place in (
            "work",
            "tmp",
            "proc",
            "sys",
            "dev",
            "etc",
            "run/gymrl",
            "gymrl",
            "usr/bin",
            "usr/lib",
            "usr/lib64",
        ):
            _folder(tar, place, folders)
        for name, aim in (("bin", "usr/bin"), ("lib", "usr/lib"), ("lib64", "usr/lib64")):
            _link(tar, name, aim)
        if os.path.dirname(binary) != "/usr/bin" or os.path.basename(binary) != "python3":
            _link(tar, "usr/bin/python3", binary)
        _text(tar, "etc/passwd", "nobody:x:65534:65534::/work:/bin/sh\n")
        _text(tar, "etc/group", "nogroup:x:65534:\n")
        for place in {
            _inside(place): place for place in sorted(places)
        }.values():  # one file may go by two paths
            _file(tar, place, folders)
        for module in sorted(Path(standard).rglob("*")):  # compiled modules too: the root is read-only
            parts = module.relative_to(standard).parts
            if not _LEFT_OUT & set(parts) and not parts[0].startswith("config-") and module.is_file():
                _file(tar, str(module), folders)


def libraries(binaries: list[str]) -> set[str]:
    """The shared libraries that these need, by `ldd`, as the paths by which they are looked for."""
    found = set()
    shown = subprocess.run(["ldd", *binaries], capture_output=True, text=True).stdout
    for path in re.findall(r"(?:=> )?(/\S+) \(0x", shown):
        found.add(path)
    return found


def _inside(path: str) -> str:
    """The path in the image: what lies under /lib and /bin here lies under /usr there."""
    first = path.lstrip("/").split("/", 1)
    return f"usr/{path.lstrip('/')}" if first[0] in ("lib", "lib64", "bin") else path.lstrip("/")


def _file(tar: tarfile.TarFile, path: str, folders: set[str]) -> None:
    name = _inside(path)
    _folder(tar, os.path.dirname(name), folders)
    info = tar.gettarinfo(os.path.realpath(path), name)
    info.type, info.uid, info.gid, info.uname, info.gname = tarfile.REGTYPE, 0, 0, "", ""
    info.size = os.path.getsize(path)
    info.mode = 0o755 if info.mode & 0o100 else 0o644
    with open(path, "rb") as source:
        tar.addfile(info, source)


def _folder(tar: tarfile.TarFile, name: str, folders: set[str]) -> None:
    parts = name.split("/")
    for i in range(1, len(parts) + 1):
        part = "/".join(parts[:i])
        if part and part not in folders:
            folders.add(part)
            info = tarfile.TarInfo(part)
            info.type, info.mode = (
                tarfile.DIRTYPE,
                0o1777 if part in ("work", "tmp") else 0o755,
            )  # a tmpfs takes it over
            tar.addfile(info)


def _link(tar: tarfile.TarFile, name: str, aim: str) -> None:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = tarfile.SYMTYPE, aim
    tar.addfile(info)


def _text(tar: tarfile.TarFile, name: str, text: str) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(text), 0o644
    tar.addfile(info, io.BytesIO(text.encode()))
