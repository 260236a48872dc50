"""The policy a run starts from: made from scratch, or loaded."""

from __future__ import annotations

from pathlib import Path

from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase

from gymrl.agents.hub import out_of_reach
from gymrl.agents.parsers import with_calls
from gymrl.agents.records import Episode
from gymrl.agents.rendering import Renderer
from gymrl.rl.opening import ModelFault, read_model
from gymrl.rl.recipes.models import Recipe, TinySection
from gymrl.rl.soundness import damage, first_line, not_finite
from gymrl.rl.tiny import CHAT_TEMPLATE, make_model, make_tokenizer

WEIGHT_FILES = ("*.safetensors", "*.bin")
TOKENIZER_FILES = ("tokenizer*", "vocab*", "*.model", "*.tiktoken", "tekken.json")
COPY_TOKENIZER = "copy tokenizer.json and tokenizer_config.json there from the model that was trained"


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
        loaded = read_model(recipe.model.path, "auto")
    except ModelFault as error:
        raise PolicyFault(
            f"model.path: {error}; name a folder or hub name with config.json, weights and tokenizer, or 'tiny'"
        ) from error
    try:
        found = AutoTokenizer.from_pretrained(recipe.model.path)
        if not knows_text(found):
            raise ValueError("it knows no token")
    except Exception as error:
        raise PolicyFault(
            f"model.path: the tokenizer of {recipe.model.path} cannot be loaded ({first_line(error)}): {COPY_TOKENIZER}"
        ) from error
    if broken := not_finite(loaded.named_parameters()):
        raise PolicyFault(
            f"model.path: {recipe.model.path} has a broken tensor, {broken}: the run that wrote it had already broken "
            "down, take an earlier checkpoint"
        )
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
    if _holds(Path(path), WEIGHT_FILES) and not _holds(Path(path), TOKENIZER_FILES):
        raise PolicyFault(f"model.path: {path} has weights and no tokenizer: {COPY_TOKENIZER}")


def _holds(folder: Path, patterns: tuple[str, ...]) -> bool:
    return any(next(folder.glob(pattern), None) is not None for pattern in patterns)


def knows_text(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a tokenizer has a vocabulary: without its files, transformers makes an empty one up."""
    return bool(tokenizer.encode("a", add_special_tokens=False))


def load_renderer(folder: Path) -> Renderer:
    """The renderer of a policy folder; its end-of-turn ids are the tokenizer's and those of the generation config.

    Raises PolicyFault if a file of the folder, weights included, is damaged.
    """
    mend = f"restore it, or delete {folder}: `gymrl train --resume` makes a run's first policy again"
    if found := damage(folder):
        raise PolicyFault(f"{found}: {mend}")
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder)
        config = AutoConfig.from_pretrained(folder)
        if not knows_text(tokenizer):
            raise ValueError("it knows no token")
    except Exception as error:  # the libraries raise a dozen kinds
        raise PolicyFault(f"tokenizer or config of {folder} are damaged ({first_line(error)}): {mend}") from error
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
