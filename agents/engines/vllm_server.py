"""vLLM as a server: started and stopped with the engine, or joined where it runs already."""

from __future__ import annotations

import asyncio
import atexit
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import torch

from gymrl.agents.engines import vllm_guard
from gymrl.agents.engines.base import (
    Engine,
    EngineFault,
    EngineSettings,
    Generation,
    GenerationRequest,
    Sampling,
)
from gymrl.agents.engines.handover import Handover
from gymrl.agents.engines.openai import cause, split_url
from gymrl.agents.engines.vllm_common import (
    engine_options,
    environment,
    finished,
    flags,
    limits_of,
    on_gpu,
    require_vllm,
    sampling_options,
    tail,
    token_limit,
)
from gymrl.agents.engines.vllm_health import SECONDS, Health, Hung

START_SECONDS = 1800.0
"""How long a server may take to load its model."""
COMMAND_SECONDS = 60.0
ANY_VOCABULARY = 2**31
NEEDED_FLAGS = (
    "VLLM_SERVER_DEV_MODE=1 python -m vllm.entrypoints.openai.api_server --model MODEL --enable-scale-out "
    "--generation-config vllm --logprobs-mode processed_logprobs --no-enable-chunked-prefill "
    "--max-num-batched-tokens TOKENS --worker-extension-cls gymrl.agents.engines.vllm_weights.WeightLoader "
    "(on a CPU also --dtype float32 --enforce-eager --kv-cache-memory-bytes 536870912)"
)


class VllmServerEngine(Engine):
    """Talks ids to a vLLM server over HTTP.

    Opening blocks until the server answers. A server of our own ends with this process, however that ends.
    Weights travel as a safetensors file in shared memory. `load_weights` holds running requests if nobody has
    paused them, and they go on, recomputed, with the new weights.
    """

    name = "vllm-server"

    def __init__(self, settings: EngineSettings, quiet: float = SECONDS) -> None:
        """`quiet`: seconds that the server may be silent before it is asked whether it is there. Raises EngineFault,
        naming the mend, if the server cannot be started or joined."""
        self._quiet, self._hung = quiet, ""
        self._server: _Server | None = None
        self._closed = self._paused = False
        self._client: httpx.AsyncClient | None = None
        self._health: Health | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._handover = Handover()
        if settings.url:
            self.url = settings.url.rstrip("/").removesuffix("/v1")
            self._join(settings)
        else:
            require_vllm()
            self.max_context, self._vocabulary = limits_of(settings)
            self._server = _start(settings, self.max_context)
            self.url = self._server.url
            atexit.register(_stop_at_exit, weakref.ref(self))
            try:
                self._server.wait_until_ready()
                self._command("/update_weight_version", {"new_version": "0"})
            except BaseException as error:
                self._server.stop(at_once=not isinstance(error, Exception))
                raise

    # -- the contract ----------------------------------------------------------------------------------

    async def generate(self, request: GenerationRequest) -> Generation:
        limit = token_limit(request, self.max_context, self._vocabulary)
        began = time.perf_counter()
        body = {"token_ids": list(request.prompt_ids), "sampling_params": sampling_options(request, limit)}
        answer = (await self._post("/inference/v1/generate", body)).json()
        choice = answer["choices"][0]
        return finished(
            request,
            choice["token_ids"],
            [entry["logprob"] for entry in choice["logprobs"]["content"] or ()],
            [(span["version"], span["start"], span["end"]) for span in choice["weight_versions"] or ()],
            choice["finish_reason"],
            time.perf_counter() - began,
        )

    async def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]], version: int) -> None:
        """Raises ValueError if weights are missing or unknown; the engine then needs a complete set."""
        tensors = dict(weights)
        path = await asyncio.to_thread(self._handover.write, tensors)
        held = self._paused
        try:
            if not held:
                await self.pause()
            call = {"method": "load_gymrl_weights", "args": [str(path)]}
            answers = (await self._post("/collective_rpc", call)).json()["results"]
            # Cached keys and values, also those of running requests, belong to the old weights.
            await self._post("/reset_prefix_cache?reset_running_requests=true")
            for answer in answers:
                if answer["error"]:
                    raise ValueError(answer["error"])
            await self._post("/update_weight_version", {"new_version": str(version)})
            self.version = version
        finally:
            path.unlink(missing_ok=True)
            if not held:
                await self.resume()

    async def pause(self) -> None:
        await self._post("/pause?mode=keep")
        self._paused = True

    async def resume(self) -> None:
        await self._post("/resume")
        self._paused = False

    async def close(self) -> None:
        client, self._client = self._client, None
        if client is not None and self._loop is asyncio.get_running_loop():
            await client.aclose()
        await asyncio.to_thread(self._stop)

    def _stop(self) -> None:
        if not self._closed:
            self._closed = True
            if self._server is not None:
                self._server.stop()
            self._handover.close()

    # -- HTTP ------------------------------------------------------------------------------------------

    async def _post(self, path: str, body: dict[str, Any] | None = None) -> httpx.Response:
        """Raises EngineFault for anything but success."""
        if self._closed:
            raise EngineFault("the vLLM server engine is closed: open another one")
        if self._hung:
            raise EngineFault(self._hung)
        if self._client is None or self._loop is not asyncio.get_running_loop():
            # Connections belong to the event loop that opened them.
            self._loop = asyncio.get_running_loop()
            limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
            self._client = httpx.AsyncClient(base_url=self.url, timeout=httpx.Timeout(None), limits=limits)
            self._health = Health(self._client, self._quiet, self._silent)
        assert self._health is not None
        try:
            response = await self._health.wait(self._client.post(path, json=body))
        except Hung as error:
            log = f", see its log {self._server.log}" if self._server else ""
            self._hung = f"the vLLM server at {self.url} hangs ({error}){log}: start it again"
            raise EngineFault(self._hung) from error
        except (httpx.TransportError, RuntimeError) as error:
            raise await asyncio.to_thread(self._gone, error) from error
        return self._checked(response, path)

    def _silent(self, text: str) -> None:
        if self.tell is not None:
            self.tell(f"the vLLM server at {self.url} {text}")

    def _command(self, path: str, body: dict[str, Any]) -> httpx.Response:
        """The same, blocking, while the engine opens."""
        try:
            response = httpx.post(self.url + path, json=body, timeout=COMMAND_SECONDS)
        except httpx.TransportError as error:
            raise self._gone(error) from error
        return self._checked(response, path)

    def _checked(self, response: httpx.Response, path: str) -> httpx.Response:
        if response.is_success:
            return response
        if response.status_code in (403, 404, 405):
            raise EngineFault(
                f"the vLLM server at {self.url} does not offer {path}: start it with {NEEDED_FLAGS}"
            )
        if response.status_code >= 500 and self._server is not None and self._server.ended(3.0):
            raise self._gone(EngineFault(f"its last answer was {response.status_code}"))
        log = f" (its log: {self._server.log})" if self._server else ""
        raise EngineFault(
            f"the vLLM server at {self.url} answered {response.status_code} to {path}{log}: {response.text[:500]}"
        )

    def _gone(self, error: Exception) -> EngineFault:
        if self._closed:
            return EngineFault("the vLLM server engine was closed while requests waited: open another one")
        if self._server is None:
            return EngineFault(
                f"the vLLM server at {self.url} does not answer ({cause(error, COMMAND_SECONDS)}): start it again, or "
                "leave the engine's url empty so that gymrl starts one"
            )
        self._server.ended(5.0)
        return EngineFault(
            f"the vLLM server died while it served: start again from the checkpoint; its log {self._server.log} "
            f"ends with\n{tail(self._server.log)}"
        )

    # -- opening ---------------------------------------------------------------------------------------

    def _join(self, settings: EngineSettings) -> None:
        window = served_window(self.url)
        self.max_context = min(settings.max_context, window or settings.max_context)
        self._vocabulary = limits_of(settings)[1] if settings.model else ANY_VOCABULARY
        # With one token left to choose from, its log-probability is 0 where truncation is applied to it.
        probe = GenerationRequest((1,), Sampling(top_k=1, max_tokens=1, seed=0), ())
        body = {"token_ids": [1], "sampling_params": sampling_options(probe, 1)}
        choice = self._command("/inference/v1/generate", body).json()["choices"][0]
        if abs(choice["logprobs"]["content"][0]["logprob"]) > 1e-6:
            raise EngineFault(
                f"the vLLM server at {self.url} reports log-probabilities from before temperature and truncation: "
                f"start it with {NEEDED_FLAGS}"
            )
        spans = choice["weight_versions"] or ()
        self.version = max((int(span["version"]) for span in spans if span["version"].isdigit()), default=0)


def require_served(policy: str) -> None:
    """Raises EngineFault where this policy is a URL at which no vLLM server is; its tokenizer is looked for later."""
    if policy.lower().startswith(("http://", "https://")):
        served_window(split_url(policy)[0].removesuffix("/v1"))


def served_window(url: str, timeout: float = 10.0) -> int | None:
    """The context of the vLLM server at this URL (without /v1). Blocks. Raises EngineFault where there is none."""
    try:
        answer = httpx.get(url + "/v1/models", timeout=timeout)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise EngineFault(
            f"no vLLM server answers at {url} ({cause(error, timeout)}): start it with {NEEDED_FLAGS}"
        ) from error
    try:
        window: int | None = answer.raise_for_status().json()["data"][0]["max_model_len"]
    except (httpx.HTTPError, ValueError, LookupError, TypeError) as error:
        raise EngineFault(
            f"something answers at {url} that is no vLLM server (status {answer.status_code} for /v1/models, "
            f"and no max_model_len in it): name the server's address, or start one with {NEEDED_FLAGS}"
        ) from error
    return window


@dataclass
class _Server:
    """A server of ours: the guard that leads its process group, and where its output goes."""

    process: subprocess.Popen[bytes]
    url: str
    log: Path

    def wait_until_ready(self) -> None:
        """Raises EngineFault with the end of the log if the server ends, or takes too long."""
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end:
            try:
                if httpx.get(self.url + "/health", timeout=5.0).is_success:
                    return
            except httpx.TransportError:
                pass
            if self.ended(0.2):
                text = tail(self.log)
                if "ddress already in use" in self.log.read_text(errors="replace"):
                    raise EngineFault(
                        f"another program took {self.url} while the vLLM server started: open the engine again"
                    )
                raise EngineFault(
                    f"the vLLM server could not start: mend what its log {self.log} says last\n{text}"
                )
        raise EngineFault(
            f"the vLLM server was not ready after {START_SECONDS:.0f} s: see its log {self.log}\n{tail(self.log)}"
        )

    def ended(self, patience: float) -> bool:
        """Whether the server is gone, or goes within `patience` seconds."""
        try:
            self.process.wait(patience)
        except subprocess.TimeoutExpired:
            return False
        return True

    def stop(self, at_once: bool = False) -> None:
        """End the whole group; at_once: without asking it, as it still starts. The log stays only where the server
        ended by itself."""
        by_itself = self.process.poll() is not None
        if not by_itself:
            if not at_once:
                self.process.send_signal(signal.SIGTERM)
            if at_once or not self.ended(vllm_guard.GRACE + 2.0):
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait()
        if not by_itself:
            shutil.rmtree(self.log.parent, ignore_errors=True)


def _start(settings: EngineSettings, max_context: int) -> _Server:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = engine_options(settings, max_context, shared=False)
    command = [
        sys.executable, "-m", "vllm.entrypoints.openai.api_server",
        "--host", "127.0.0.1", "--port", str(port), "--enable-scale-out", "--disable-uvicorn-access-log",
        "--disable-log-stats", "--worker-extension-cls", "gymrl.agents.engines.vllm_weights.WeightLoader",
        *flags(options),
    ]  # fmt: skip
    log = Path(tempfile.mkdtemp(prefix="gymrl-vllm-")) / "server.log"
    variables = os.environ | environment()
    variables |= {"VLLM_SERVER_DEV_MODE": "1", "PYTHONUNBUFFERED": "1"}
    # On a CPU vLLM starts a worker process beside the engine's, each of which takes seconds, unless this is 0.
    variables["VLLM_ENABLE_V1_MULTIPROCESSING"] = "1" if on_gpu() else "0"
    guard = [sys.executable, "-S", "-E", vllm_guard.__file__, str(os.getpid()), *command]
    with log.open("wb") as output:
        process = subprocess.Popen(
            guard,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=variables,
            start_new_session=True,
        )
    return _Server(process, f"http://127.0.0.1:{port}", log)


def _stop_at_exit(reference: weakref.ref[VllmServerEngine]) -> None:
    engine = reference()
    if engine is not None:
        engine._stop()
