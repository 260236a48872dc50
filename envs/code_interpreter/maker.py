"""A process of its own for the reasoning-gym families that our process is no place for.

Some change with PYTHONHASHSEED, draw from global generators, print, run programs that the package stores, or take long;
some verifiers evaluate the agent's text. Here PYTHONHASHSEED is 0, the global generators are seeded before each item,
standard output is nobody's, and an answer that takes too long to judge takes this process with it, not ours.
"""

from __future__ import annotations

import atexit
import json
import os
import pickle
import random
import select
import struct
import subprocess
import sys
import tempfile
import threading
import time
from typing import IO, Any

from gymrl.envs.gym import EnvironmentFault

BOOT = (
    "import sys, json; sys.path[:] = json.loads(sys.argv[1]); "
    "from gymrl.envs.code_interpreter.maker import main; main()"
)
CONFIGS: dict[str, dict[str, Any]] = {"futoshiki": {"max_board_size": 6}}
"""Parameters other than the package's own: boards of 9 x 9 take seconds each."""
ITEMS = 50
"""Items of one data set; some families cannot have many."""
START_SECONDS, MAKE_SECONDS, JUDGE_SECONDS = 120.0, 60.0, 10.0
_SIZE = struct.Struct(">Q")


class TooSlow(Exception):
    """There was no answer in time; the process was ended."""


class Maker:
    """The process as its parent sees it: started when it is first needed, one request at a time, from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        atexit.register(self.close)

    def item(self, family: str, seed: int, index: int) -> dict[str, Any]:
        """Item `index` of the family's data set of that seed. Raises EnvironmentFault."""
        try:
            return self._ask(("item", family, seed, index), MAKE_SECONDS)  # type: ignore[no-any-return]
        except TooSlow:
            raise EnvironmentFault(f"reasoning-gym's {family} made no item in {MAKE_SECONDS:g} s") from None

    def score(self, family: str, seed: int, index: int, answer: str) -> float:
        """What the family's verifier says of an answer to that item; one that it cannot judge in time is wrong.

        Raises EnvironmentFault where the process is lost, ValueError where the verifier raised.
        """
        try:
            return float(self._ask(("score", family, seed, index, answer), JUDGE_SECONDS))
        except TooSlow:
            return 0.0

    def close(self) -> None:
        with self._lock:
            self._end()

    def _ask(self, request: tuple[Any, ...], seconds: float) -> Any:
        with self._lock:
            try:
                if self._process is None or self._process.poll() is not None:
                    self._end()
                    self._start()
                assert self._process is not None and self._process.stdin and self._process.stdout
                _send(self._process.stdin, request)
                kind, value = self._receive(self._process.stdout, seconds)
            except (OSError, EOFError) as error:
                self._end()
                raise EnvironmentFault(f"the process that makes {request[1]} is lost ({error})") from error
        if kind == "fault":
            raise EnvironmentFault(f"reasoning-gym's {request[1]} failed for seed {request[2]}: {value}")
        if kind == "raised":
            raise ValueError(value)
        return value

    def _receive(self, stream: IO[bytes], seconds: float) -> Any:
        if not select.select([stream], [], [], seconds)[0]:
            self._end()
            raise TooSlow
        return _take(stream)

    def _start(self) -> None:
        environ = {**os.environ, "PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1"}
        self._folder = tempfile.TemporaryDirectory(prefix="gymrl-maker-")  # stored programs write files
        path = json.dumps(
            [os.path.abspath(place) if os.path.isdir(place or ".") else place for place in sys.path]
        )
        self._process = subprocess.Popen(
            [sys.executable, "-c", BOOT, path], env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            cwd=self._folder.name, process_group=0, bufsize=0,
        )  # fmt: skip
        assert self._process.stdout
        try:
            self._receive(self._process.stdout, START_SECONDS)
        except TooSlow:
            raise EOFError(f"it did not start in {START_SECONDS:g} s") from None

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout):
                if stream:
                    stream.close()
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None


MAKER = Maker()
"""The one of this process."""


def main() -> None:
    """Answer requests until the parent is gone."""
    from functools import lru_cache

    import numpy as np

    source, out = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb", 0)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what a family prints is for nobody
    from reasoning_gym.factory import create_dataset

    @lru_cache(16)
    def data_set(family: str, seed: int) -> Any:
        random.seed(seed)
        np.random.seed(seed % 2**32)
        return create_dataset(family, seed=seed, size=ITEMS, **CONFIGS.get(family, {}))

    @lru_cache(64)
    def item(family: str, seed: int, index: int) -> Any:
        found = data_set(family, seed)
        random.seed(seed + index)
        np.random.seed((seed + index) % 2**32)
        return found[index]

    _send(out, ("ready", time.time()))
    while True:
        try:
            method, family, seed, index, *answer = _take(source)
        except EOFError:
            os._exit(0)
        try:
            made = item(family, seed, index)
        except Exception as error:
            _send(out, ("fault", repr(error)))
            continue
        if method == "item":
            _send(
                out,
                ("item", {"question": made["question"], "answer": made["answer"], "metadata": _plain(made)}),
            )
            continue
        try:
            _send(out, ("score", float(data_set(family, seed).score_answer(answer[0], made))))
        except Exception as error:
            _send(out, ("raised", repr(error)))


def _plain(item: dict[str, Any]) -> Any:
    """The metadata, as far as it is plain data: solvers look into it."""
    try:
        return json.loads(json.dumps(item["metadata"]))
    except (TypeError, ValueError):
        return None


def _send(stream: IO[bytes], value: Any) -> None:
    body = pickle.dumps(value)
    data = memoryview(_SIZE.pack(len(body)) + body)
    while data:
        data = data[stream.write(data) or 0 :]


def _take(stream: IO[bytes]) -> Any:
    return pickle.loads(_exactly(stream, _SIZE.unpack(_exactly(stream, _SIZE.size))[0]))


def _exactly(stream: IO[bytes], size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = stream.read(size - len(data))
        if not part:
            raise EOFError("it ended")
        data += part
    return data
