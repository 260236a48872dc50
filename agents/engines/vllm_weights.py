"""New weights into a running vLLM: what happens inside vLLM's worker, in this process or in a server's.

Nothing here is imported before vLLM is: a server names `WeightLoader` as its `--worker-extension-cls`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from safetensors import safe_open


def load_into_worker(worker: Any, weights: Iterable[tuple[str, torch.Tensor]]) -> list[str]:
    """Replace the model's weights in place and return the names of vLLM's parameters that got no new value.

    `weights` are named as in the Hugging Face state dict. Cached keys and values are the caller's to forget.
    """
    from vllm.config import set_current_vllm_config
    from vllm.model_executor.model_loader.reload.layerwise import (
        finalize_layerwise_reload,
        initialize_layerwise_reload,
    )

    runner = worker.model_runner
    model = runner.get_model()
    with torch.no_grad(), set_current_vllm_config(worker.vllm_config):
        expected = {name for name, _ in model.named_parameters()}
        initialize_layerwise_reload(model)
        try:
            loaded = model.load_weights(weights)
        finally:
            finalize_layerwise_reload(model, worker.vllm_config.model_config)
        _refresh_tied_heads(model)
        runner.reset_lora_state()
    return sorted(expected - loaded) if loaded is not None else []


def _refresh_tied_heads(model: torch.nn.Module) -> None:
    """A head that shares its weight with the embedding is no layer of its own to the reload, but on the CPU it
    keeps a packed copy: without this it would go on answering with the old weights."""
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding

    embeddings = [
        module
        for module in model.modules()
        if isinstance(module, VocabParallelEmbedding) and not isinstance(module, ParallelLMHead)
    ]
    for head in model.modules():
        if isinstance(head, ParallelLMHead) and any(head.weight is layer.weight for layer in embeddings):
            head.quant_method.process_weights_after_loading(head)


class WeightLoader:
    """Mixed into the worker of a vLLM server; called through its `/collective_rpc`."""

    def load_gymrl_weights(self, path: str) -> list[str]:
        """Load a safetensors file that this machine can read; returns what `load_into_worker` returns."""
        with safe_open(path, framework="pt") as file:
            names = file.keys()
            return load_into_worker(self, ((name, file.get_tensor(name)) for name in names))
