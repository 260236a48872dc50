"""New weights into a running vLLM: what happens inside vLLM's worker, in this process or in a server's.

Nothing here is imported before vLLM is: a server names `WeightLoader` as its `--worker-extension-cls`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from safetensors import safe_open


def load_into_worker(worker: Any, weights: Iterable[tuple[str, torch.Tensor]]) -> str:
    """Replace the model's weights in place. Returns what is wrong with them; nothing if all is well.

    `weights` are named as in the Hugging Face state dict, all of them. Cached keys and values are the caller's to
    forget. A sentence and no exception, because vLLM's server hides the text of exceptions in its workers.
    """
    from vllm.config import set_current_vllm_config
    from vllm.model_executor.model_loader.reload.layerwise import (
        finalize_layerwise_reload,
        initialize_layerwise_reload,
    )

    runner = worker.model_runner
    model = runner.get_model()
    wrong = ""
    with torch.no_grad(), set_current_vllm_config(worker.vllm_config):
        expected = {name for name, _ in model.named_parameters()}
        initialize_layerwise_reload(model)
        try:
            missing = expected - (model.load_weights(weights) or expected)
            if missing:
                wrong = (
                    f"the new weights lack {len(missing)} of vLLM's parameters, {min(missing)!r} among them"
                )
        except Exception as error:  # models raise what they like for a name or a shape that they do not know
            wrong = f"the new weights are not those of the served model: {str(error)[:200]}"
        finalize_layerwise_reload(model, worker.vllm_config.model_config)
        _refresh_tied_heads(model)
        runner.reset_lora_state()
    return wrong


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

    def load_gymrl_weights(self, path: str) -> dict[str, str]:
        """Load a safetensors file that this machine can read. `error` is what `load_into_worker` returns."""
        try:
            with safe_open(path, framework="pt") as file:
                names = list(file.keys())
                return {"error": load_into_worker(self, ((name, file.get_tensor(name)) for name in names))}
        except OSError as error:
            return {"error": f"vLLM's worker cannot read the weights in {path}: {error}"}
