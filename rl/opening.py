"""A model made ready to be trained: nothing in it is left to chance, and packed it computes what it computes alone."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from gymrl.agents.ragged import NAME
from gymrl.rl.batches import TokenSequence, make_batch
from gymrl.rl.logprobs import LogProbs
from gymrl.rl.soundness import damage, first_line, not_finite

NEAR = 0.002
"""How far (nats) packed log-probabilities may lie from the plain model's; rounding makes 1e-5 in float32."""


class ModelFault(ValueError):
    """The model cannot be trained packed; the text names the mend."""


def steadied(model: Any, checkpointing: bool = False) -> Any:
    """The model without dropout and other chance: what it says of a token while it learns is what it said when asked,
    and what a resumed run says. With `checkpointing` its layers keep few activations and compute the others again."""
    model.eval()
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        for module in model.modules():
            if isinstance(module, GradientCheckpointingLayer):
                module.training = True  # its mark that it may compute again; what is in it stays as it is
    return model


def read_model(source: str | Path, dtype: Any, **options: Any) -> PreTrainedModel:
    """A causal language model from a folder or hub name. Raises ModelFault if a file is damaged or weights are missing,
    which would be filled with random numbers."""
    try:
        # Typed Any: the stub knows nothing of output_loading_info, which makes it return a pair.
        pair: Any = AutoModelForCausalLM.from_pretrained(source, dtype=dtype, output_loading_info=True, **options)
    except Exception as error:  # the libraries raise a dozen kinds
        found = damage(Path(source)) or f"{type(error).__name__}: {first_line(error)}"
        raise ModelFault(f"the model {str(source)!r} cannot be loaded ({found})") from error
    model: PreTrainedModel = pair[0]
    if missing := sorted(pair[1]["missing_keys"]):
        raise ModelFault(
            f"the model {str(source)!r} lacks {len(missing)} weights, {missing[0]} among them: take another checkpoint "
            "or copy this one again"
        )
    return model


@torch.no_grad()
def check_packing(model: Any) -> None:
    """Raise ModelFault if a weight is not finite, or the log-probabilities of packed sequences are not those of the
    model run plainly on each: its head, attention or positions then do what is not computed here."""
    if broken := not_finite(model.named_parameters()):
        raise ModelFault(
            f"{model.name_or_path or 'the model'} has a broken tensor, {broken}: the run that wrote it had already "
            "broken down; begin anew from an earlier checkpoint (model.path=RUN/checkpoints/STAGE) or with a lower "
            "learning rate"
        )
    device, vocabulary = next(model.parameters()).device, model.get_output_embeddings().weight.shape[0]
    rows = [(np.arange(length) * 31 + 7) % vocabulary for length in (6, 11)]
    sequences = [
        TokenSequence(ids, ids * 0 + np.arange(len(ids)) > 0, ids * 0.0, ids * 0.0, ids * 0, ids * 0)
        for ids in rows
    ]
    kind = type(model).__name__
    try:
        packed_N = LogProbs(model, 2**24, nullcontext)(make_batch(sequences, [1.0, 1.0], device), 1.0, False)[
            0
        ]
    except Exception as error:
        raise ModelFault(
            f"{kind} cannot be run on packed sequences ({type(error).__name__}: {error})"
        ) from error
    model.set_attn_implementation("eager")
    try:
        plain = []
        for row in rows:
            ids = torch.from_numpy(row).to(device)
            lp_NV = model(input_ids=ids[None], use_cache=False).logits[0, :-1].float().log_softmax(-1)
            plain.append(lp_NV.gather(-1, ids[1:, None])[:, 0])
    finally:
        model.set_attn_implementation(NAME)
    apart = float((packed_N - torch.cat(plain)).abs().max())
    if not apart <= NEAR:
        raise ModelFault(
            f"{kind} says something else packed than alone (log-probabilities {apart:.2g} apart): it scales its "
            "logits, or has position biases, neither of which gymrl computes; take another model, such as a Qwen, "
            "Llama, Mistral, OLMo, Phi or Gemma 3"
        )
