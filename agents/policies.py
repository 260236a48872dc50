"""Policies by name: scripted players, checkpoints, models of the hub, and servers by URL."""

from __future__ import annotations

import difflib
import hashlib
import math
import os
import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from gymrl.agents.engines.base import EngineFault, EngineSettings, Sampling, open_engine
from gymrl.agents.hub import out_of_reach
from gymrl.agents.players import Agent, ModelAgent, ScriptedAgent

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
WHAT = (
    "a policy is oracle, random, null, a checkpoint folder, a hub name (OWNER/MODEL) or the URL of a server"
)


class UnknownPolicy(ValueError):
    """No policy goes by that name; the text names the nearest."""


class OpenPolicy:
    """A policy that is ready to play. `async with open_policy(...) as agent:` gives its agent and closes it."""

    def __init__(self, agent: Agent, close: Callable[[], Awaitable[None]] | None = None) -> None:
        self.agent, self._close = agent, close

    async def close(self) -> None:
        """Stop whatever serves the policy; closing twice does nothing."""
        close, self._close = self._close, None
        if close is not None:
            await close()

    async def __aenter__(self) -> Agent:
        return self.agent

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


def open_policy(
    name: str, *, engine: str = "transformers", sampling: Sampling | None = None, max_context: int | None = None,
    slots: int = 64, dtype: str | None = None, timeout: float | None = None, tell: Callable[[str], None] | None = None,
) -> OpenPolicy:  # fmt: skip
    """Open the policy of that name; blocks while a model loads, so call it outside of an event loop.

    `oracle`, `random` and `null` are scripted. A folder in Hugging Face format or a hub name is served by `engine`
    (`transformers`, `vllm` or `vllm-server`). A URL (`http://host:port`, `http://host:port/v1#model`) is an
    OpenAI-compatible server of chat completions; with the engine `vllm-server` it is a vLLM server that takes and
    gives token ids. `max_context` (default 4096 tokens) is capped at what the model was built for, and `slots`, how
    many episodes are generated at once, at what fits the memory. `dtype` is bfloat16 on a GPU and float32 elsewhere.
    `timeout` (default 300 s) is what a server of chat completions has for one answer. `tell` hears of a server's
    trouble while it is waited out.

    Raises UnknownPolicy, ValueError, EngineFault and RenderingFault, each with a sentence that names the mend.
    """
    sampling = sampling or Sampling()
    _check_options(name, engine, max_context, dtype, timeout)
    if name in ScriptedAgent.KINDS:
        return OpenPolicy(ScriptedAgent(name))
    if is_url(name):
        if engine == "vllm-server":
            opened = _joined_server(name, sampling, max_context, slots, dtype)
            if isinstance(opened.agent, ModelAgent):
                opened.agent.engine.tell = tell
            return opened
        from gymrl.agents.engines.openai import ANSWER_SECONDS, ChatAgent

        agent = ChatAgent(name, sampling, ANSWER_SECONDS if timeout is None else timeout, tell=tell)
        return OpenPolicy(agent, agent.close)
    return _served(name, model_source(name), engine, sampling, max_context, slots, dtype)


def _check_options(
    name: str, engine: str, max_context: int | None, dtype: str | None, timeout: float | None
) -> None:
    """Raise ValueError for an option that there is not, or that says nothing about this policy."""
    kinds = ("transformers", "vllm", "vllm-server")
    if engine not in kinds:
        raise ValueError(f"unknown engine {engine!r}: take {', '.join(kinds)}")
    if dtype not in (None, "float32", "bfloat16", "float16"):
        raise ValueError(f"unknown dtype {dtype!r}: take float32, bfloat16 or float16")
    scripted, server = name in ScriptedAgent.KINDS, is_url(name)
    if timeout is not None:
        if not server or engine == "vllm-server":
            raise ValueError(
                "a timeout is of a server of chat completions, which this policy is not: leave it out"
            )
        if not 0 < timeout < math.inf:
            raise ValueError(f"a timeout is a number of seconds above 0, not {timeout:g}")
    if server and engine == "vllm":
        raise ValueError(
            "engine vllm serves a checkpoint, and a server serves its own: leave it out, or take vllm-server, which "
            "speaks to a vLLM server in token ids"
        )
    if scripted or (server and engine != "vllm-server"):
        for option, value in (("max_context", max_context), ("dtype", dtype)):
            if value is not None:
                of = "a scripted policy has no" if scripted else "the server decides its"
                raise ValueError(
                    f"{option} is of a checkpoint that gymrl serves, {of} {option}: leave it out"
                )


def serving_engine(name: str, engine: str) -> str:
    """The engine that serves a policy of that name; '' where none of ours does: scripted ones, chat servers."""
    ours = name not in ScriptedAgent.KINDS and (not is_url(name) or engine == "vllm-server")
    return engine if ours else ""


def is_url(name: str) -> bool:
    return re.match(r"https?://", name, re.IGNORECASE) is not None


def model_source(name: str) -> str:
    """The folder or hub name that `name` means. Raises UnknownPolicy, which names the nearest policy."""
    folder = Path(name).expanduser()
    if folder.is_dir():
        return str(_checkpoint(name, folder))
    if folder.exists():
        raise UnknownPolicy(
            f"the policy {name!r} is a file: give a checkpoint's folder, which holds a config.json"
        )
    if HUB_NAME.fullmatch(name) and not folder.parent.is_dir():
        return name
    raise UnknownPolicy(f"unknown policy {name!r}: {_nearest(name, folder)}")


def _checkpoint(name: str, folder: Path) -> Path:
    if (folder / "config.json").is_file():
        return folder
    inside = sorted(
        (found.parent for depth in ("*", "*/*") for found in folder.glob(f"{depth}/config.json")),
        key=lambda found: found.stat().st_mtime,
    )
    if inside:
        raise UnknownPolicy(f"the folder {name!r} holds no config.json: did you mean {str(inside[-1])!r}?")
    raise UnknownPolicy(
        f"the folder {name!r} holds no config.json: give a checkpoint in Hugging Face format, such as those under "
        "RUN/checkpoints that `gymrl train` writes"
    )


def _nearest(name: str, folder: Path) -> str:
    try:
        beside = [found for found in folder.parent.iterdir() if found.is_dir() and found.name[0] != "."]
    except OSError:
        beside = []
    prefix = name[: len(name) - len(folder.name)] if folder.name and name.endswith(folder.name) else ""
    candidates = [*ScriptedAgent.KINDS, *(prefix + found.name for found in beside)]
    near = difflib.get_close_matches(name, candidates, 1, 0.6)
    return f"did you mean {near[0]!r}?" if near else WHAT + "."


def _served(
    name: str, source: str, engine: str, sampling: Sampling, max_context: int | None, slots: int, dtype: str | None,
    url: str = "",
) -> OpenPolicy:  # fmt: skip
    import torch

    from gymrl.agents.rendering import Renderer

    tokenizer, config, stop_ids = load_tokenizer(source)
    renderer = Renderer(tokenizer, stop_ids)
    text_config = config.get_text_config()
    context = min(max_context or 4096, getattr(text_config, "max_position_embeddings", None) or 4096)
    dtype = dtype or ("bfloat16" if torch.cuda.is_available() else "float32")
    if engine == "transformers":
        slots = fitting_slots(text_config, context, dtype, slots)
    opened = open_engine(
        EngineSettings(kind=engine, model=source, url=url, max_context=context, slots=slots, dtype=dtype)
    )
    return OpenPolicy(ModelAgent(name, opened, renderer, sampling), opened.close)


def load_tokenizer(source: str) -> tuple[PreTrainedTokenizerBase, Any, tuple[int, ...]]:
    """Tokenizer, config and the ids that end a turn (the tokenizer's and the generation config's).

    Raises UnknownPolicy if a hub name cannot be found, EngineFault if the checkpoint is broken.
    """
    from transformers import AutoConfig, AutoTokenizer, GenerationConfig

    local = Path(source).is_dir()
    if not local and (reason := out_of_reach(source)):
        raise UnknownPolicy(f"the model {source!r} is no folder here, and as a hub name {reason}: {WHAT}.")
    try:
        config = AutoConfig.from_pretrained(source)
    except Exception as error:
        if local:
            raise EngineFault(
                f"the checkpoint {source!r} is broken, its config.json cannot be read ({_first_line(error)}): take "
                "another checkpoint or copy this one again"
            ) from error
        raise UnknownPolicy(
            f"the model {source!r} is neither a folder here nor to be had from the hub ({_first_line(error)}): {WHAT}."
        ) from error
    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
        if not tokenizer.encode("a", add_special_tokens=False):  # made up of nothing, as no file was found
            raise ValueError("it knows no word")
    except Exception as error:
        raise EngineFault(
            f"the tokenizer of {source!r} cannot be loaded ({_first_line(error)}): put tokenizer.json and "
            "tokenizer_config.json beside the model"
        ) from error
    ids: list[int] = []
    try:
        ends = GenerationConfig.from_pretrained(source).eos_token_id
    except (OSError, ValueError):  # a model without one
        ends = config.get_text_config().eos_token_id
    if ends is not None:
        ids = [ends] if isinstance(ends, int) else list(ends)
    return tokenizer, config, tuple(ids)


def fitting_slots(config: Any, max_context: int, dtype: str, wanted: int) -> int:
    """How many sequences of `max_context` tokens have room for their keys and values, at most `wanted`.

    Raises EngineFault if not even one has.
    """
    import torch

    heads = config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    item = torch.empty((), dtype=getattr(torch, dtype)).element_size()
    each = 2 * config.num_hidden_layers * kv_heads * head_dim * max_context * item
    if torch.cuda.is_available():
        free = torch.cuda.mem_get_info()[0]
    else:
        free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    fits = int(0.4 * free // each)  # the weights and the activations want the rest
    if fits < 1:
        raise EngineFault(
            f"a context of {max_context} tokens takes {each / 2**30:.1f} GiB an episode and {free / 2**30:.1f} GiB are "
            "free: lower max_context or take a smaller model"
        )
    return min(wanted, fits)


def _joined_server(
    url: str, sampling: Sampling, max_context: int | None, slots: int, dtype: str | None
) -> OpenPolicy:
    """A vLLM server by URL, spoken to in token ids; its tokenizer comes from where it took its model."""
    from gymrl.agents.engines.openai import served_models, split_url
    from gymrl.agents.engines.vllm_server import require_served

    require_served(url)
    base, model = split_url(url)
    models = served_models(base)
    chosen = next((entry for entry in models if model in ("", entry["id"])), None)
    if chosen is None:
        raise EngineFault(
            f"{base} serves no model {model!r}: it has {', '.join(entry['id'] for entry in models)}"
        )
    source = str(chosen.get("root") or chosen["id"])
    window = chosen.get("max_model_len")
    limit = min(max_context or 4096, int(window)) if window else max_context
    name = f"{base}#{chosen['id']}"  # another model may be behind the same URL tomorrow
    return _served(name, source, "vllm-server", sampling, limit, slots, dtype, base.removesuffix("/v1"))


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")[:300]


def policy_digest(policy: str) -> str:
    """A hash over the files that make a checkpoint ('' where the policy is no folder)."""
    folder = Path(policy).expanduser()
    if policy in ScriptedAgent.KINDS or not folder.is_dir():
        return ""
    digest = hashlib.blake2b(digest_size=8)
    for path in sorted(folder.iterdir()):
        if path.suffix in (".safetensors", ".bin", ".json", ".jinja", ".model", ".txt"):
            digest.update(path.name.encode())
            with path.open("rb") as file:
                while block := file.read(2**22):
                    digest.update(block)
    return digest.hexdigest()
