"""The policy a run starts from: made from scratch, or loaded."""

from __future__ import annotations

from pathlib import Path

from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from gymrl.agents.hub import out_of_reach
from gymrl.agents.parsers import with_calls
from gymrl.agents.records import Episode
from gymrl.agents.rendering import Renderer
from gymrl.rl.recipes.models import Recipe, TinySection
from gymrl.rl.tiny import CHAT_TEMPLATE, make_model, make_tokenizer


class PolicyFault(RuntimeError):
    """The policy cannot be made or loaded; the text names the mend."""


def start_policy(recipe: Recipe, demonstrations: list[Episode], folder: Path) -> Path:
    """Write the run's first policy to `folder`, model and tokenizer; returns it."""
    if recipe.model.path == "tiny":
        texts = [text for episode in demonstrations for text in conversation_texts(episode)]
        m = recipe.model.tiny or TinySection()
        tokenizer = make_tokenizer(texts, m.vocab)
        context = max(recipe.engine.max_context, 512)
        model = make_model(len(tokenizer), m.hidden, m.layers, m.heads, m.kv_heads, context, recipe.seed)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder
    check_source(recipe.model.path)
    try:
        loaded = AutoModelForCausalLM.from_pretrained(recipe.model.path, dtype="auto")
        found = AutoTokenizer.from_pretrained(recipe.model.path)
    except Exception as error:  # the libraries raise a dozen kinds
        raise PolicyFault(
            f"the model {recipe.model.path!r} cannot be loaded ({type(error).__name__}: {str(error)[:300]}): name a "
            "folder or hub name with config.json, weights and tokenizer, or 'tiny'"
        ) from error
    loaded.save_pretrained(folder)
    found.save_pretrained(folder)
    return folder


def check_source(path: str) -> None:
    """Raise PolicyFault if the policy cannot be had, no such folder and no hub: before anything is asked or made."""
    is_path = path.startswith(("/", ".", "~")) or path.count("/") > 1
    if path == "tiny":
        return
    if not is_path and not Path(path).is_dir():
        if reason := out_of_reach(path):
            raise PolicyFault(
                f"model.path: {path!r} is no folder here, and as a hub name {reason}: name a folder, or 'tiny'"
            )
        return
    if not Path(path).is_dir():
        raise PolicyFault(
            f"model.path: there is no folder {path!r}: name one with config.json, weights and tokenizer, a hub name, "
            "or 'tiny'"
        )
    if not (Path(path) / "config.json").is_file():
        raise PolicyFault(f"model.path: {path} holds no config.json: name a folder in Hugging Face form")


def load_renderer(folder: Path) -> Renderer:
    """The renderer of a policy folder; its end-of-turn ids are the tokenizer's and those of the generation config."""
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder)
    config = AutoConfig.from_pretrained(folder)
    eos = getattr(config, "eos_token_id", None)
    extra = [eos] if isinstance(eos, int) else list(eos or [])
    return Renderer(tokenizer, extra)


def conversation_texts(episode: Episode) -> list[str]:
    """What the tokenizer is trained on: every text of an episode, as the chat template frames it."""
    texts = []
    for turn in episode.turns:
        texts += [f"{message.role}\n{message.text}\n" for message in turn.messages]
        texts.append(f"assistant\n{with_calls(turn.text, turn.tool_calls)}\n")
    assert CHAT_TEMPLATE
    return texts
