"""Models that the learner trains: no attention backend leaks, nothing is left to chance, activations may be computed
again; and a model that packed sequences make say something else is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    GptOssConfig,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    Qwen2Config,
    Qwen3Config,
)

from gymrl.agents.ragged import NAME
from gymrl.rl.batches import TokenSequence, make_batch
from gymrl.rl.learner import Learner, LearnerSettings
from gymrl.rl.opening import ModelFault, check_packing
from gymrl.rl.trainers.sft import negative_logprob

VOCAB = 300
SIZES = {
    "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "max_position_embeddings": 128, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
TRAINED = {
    "qwen3": Qwen3Config(**SIZES, head_dim=16), "qwen2": Qwen2Config(**SIZES), "llama": LlamaConfig(**SIZES),
    "mistral": MistralConfig(**SIZES, sliding_window=6), "phi3": Phi3Config(**SIZES),
    "gemma3": Gemma3TextConfig(**SIZES, head_dim=16, sliding_window=6),
    "gpt2": GPT2Config(vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=2, n_positions=128),
    "gpt-neox": GPTNeoXConfig(
        vocab_size=VOCAB, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        hidden_dropout=0.1,
    ),
}  # fmt: skip
REFUSED = {
    "capped attention": (Gemma2Config(**SIZES, head_dim=16), "capped attention scores"),
    "scaled logits": (GraniteConfig(**SIZES, logits_scaling=4.0), "apart"),
    "position biases": (BloomConfig(vocab_size=VOCAB, hidden_size=32, n_layer=2, n_head=2), "apart"),
    "sinks": (
        GptOssConfig(**SIZES, head_dim=16, num_local_experts=2, num_experts_per_tok=1),
        "attention sinks",
    ),
}


def made(config):
    """A model whose weights are large enough that every token says something of its own."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config).float()
        for parameter in model.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.3)
    model.set_attn_implementation(NAME)
    return model.eval()


def learner(config, **changes) -> Learner:
    AcceleratorState._reset_state(reset_partial_state=True)
    precision = changes.get("mixed_precision", "no")
    return Learner(made(config), LearnerSettings(**changes), Accelerator(cpu=True, mixed_precision=precision))


@pytest.fixture(autouse=True)
def fresh_accelerator():
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def sequence(seed: int, length: int) -> TokenSequence:
    ids = np.random.default_rng(seed).integers(5, VOCAB, length)
    action = np.arange(length) >= 3
    return TokenSequence(ids, action, ids * 0.0, action * 1.0, ids * 0, ids * 0)


def plain(model, sequence: TokenSequence) -> torch.Tensor:
    """Of its action tokens, by the model alone with its own attention."""
    model.set_attn_implementation("eager")
    ids = torch.from_numpy(sequence.ids)
    with torch.no_grad():
        lp_NV = model(input_ids=ids[None], use_cache=False).logits[0].log_softmax(-1)
    model.set_attn_implementation(NAME)
    return lp_NV[:-1].gather(-1, ids[1:, None])[:, 0][torch.from_numpy(sequence.action[1:])]


@pytest.mark.parametrize("backend", ["MATH", "FLASH_ATTENTION"])
@pytest.mark.parametrize("name", ["qwen3", "mistral", "gemma3"])
def test_no_attention_backend_leaks_between_packed_sequences(name, backend):
    """Of those that PyTorch has on the CPU; windows are a dense mask, which its flash kernel takes too."""
    ours, own = learner(TRAINED[name]), sequence(1, 40)
    with sdpa_kernel([getattr(SDPBackend, backend)]):
        want = plain(ours.model, own)
        for seed in (2, 3):
            other = sequence(seed, 45)
            together, _ = ours.logprobs(make_batch([other, own, sequence(seed, 7)], [1.0] * 3))
            got = together[other.actions : other.actions + own.actions]
            torch.testing.assert_close(got, want, atol=2e-5, rtol=0)


@pytest.mark.parametrize("name", TRAINED)
def test_a_model_says_the_same_each_time_it_is_asked_and_what_it_says_alone(name):
    """GPT-2 and GPT-NeoX have dropout, which would make ratios of nothing but chance."""
    ours, data = learner(TRAINED[name]), [sequence(1, 9), sequence(2, 30)]
    first, again = (torch.cat(ours.score(data)) for _ in range(2))
    assert torch.equal(first, again)
    torch.testing.assert_close(first, torch.cat([plain(ours.model, s) for s in data]), atol=2e-5, rtol=0)
    before = ours.score(data)
    loss = ours.step(data, [0.1, 0.1], negative_logprob, 1e-3).loss
    assert loss == pytest.approx(-0.1 * sum(float(lp.sum()) for lp in before), rel=1e-5)
    check_packing(made(TRAINED[name]))


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_computed_packed_is_refused(case, tmp_path):
    config, words = REFUSED[case]
    made(config).save_pretrained(tmp_path)
    with pytest.raises(ModelFault, match=words) as error:
        Learner(tmp_path, LearnerSettings(), Accelerator(cpu=True))
    assert "take another model" in str(error.value)


@pytest.mark.parametrize("name", ["qwen3", "llama", "gpt2"])
def test_activations_computed_again_change_nothing(name):
    found = []
    for checkpointing in (False, True):
        ours, runs = learner(TRAINED[name], gradient_checkpointing=checkpointing), []
        layers = ours.model.get_decoder()
        first = (layers.h if name == "gpt2" else layers.layers)[0].mlp
        first.register_forward_pre_hook(lambda *_, runs=runs: runs.append(1))
        done = ours.step([sequence(1, 30), sequence(2, 12)], [0.1, 0.1], negative_logprob, 1e-3)
        found.append((len(runs), done, [p.detach() for p in ours.model.parameters()]))
    assert [runs for runs, _, _ in found] == [1, 2]
    assert found[0][1] == found[1][1]
    assert all(torch.equal(a, b) for a, b in zip(found[0][2], found[1][2], strict=True))


@pytest.mark.parametrize("name", ["qwen3", "gemma3"])
def test_mixed_precision_is_near_and_keeps_float32_weights(name):
    data, done = [sequence(1, 30), sequence(2, 12)], []
    for precision in ("no", "bf16"):
        ours = learner(TRAINED[name], mixed_precision=precision)
        done.append((torch.cat(ours.score(data)), ours.step(data, [0.1, 0.1], negative_logprob, 1e-3)))
        assert {p.dtype for p in ours.model.parameters()} == {torch.float32}
    apart = (done[0][0] - done[1][0]).abs()
    assert 0 < float(apart.mean()) < 0.05
    assert done[1][1].loss == pytest.approx(done[0][1].loss, rel=1e-2) and done[1][1].grad_norm > 0
