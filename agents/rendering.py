"""From messages to token ids, with the model's own chat template, without encoding anything twice."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from gymrl.envs.records import Message, Observation, Tool

OPENINGS = 64
"""First prompts that a renderer keeps."""


class RenderingFault(ValueError):
    """The tokenizer cannot render this conversation; the text names the mend."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """The next prompt. `new_ids` are the ids that it adds: to what was sampled last if `extends`, else it is all
    new and begins a segment. `ids` is the whole prompt."""

    ids: tuple[int, ...]
    new_ids: tuple[int, ...]
    segment: int
    extends: bool


class Renderer:
    """Renders conversations for one tokenizer. `Conversation` holds one episode's state."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop_ids: Sequence[int] = ()) -> None:
        """Raises RenderingFault if the tokenizer has no chat template or no end-of-turn token."""
        if not tokenizer.chat_template:
            raise RenderingFault(
                "the tokenizer has no chat template: put a chat_template.jinja beside the model, or take its "
                "instruction-tuned form"
            )
        self.tokenizer = tokenizer
        self._openings: OrderedDict[Hashable, tuple[str, tuple[int, ...]]] = OrderedDict()
        ids = [*stop_ids, *([tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else [])]
        self.stop_ids = tuple(dict.fromkeys(int(i) for i in ids))
        if not self.stop_ids:
            raise RenderingFault("the tokenizer has no end-of-turn token: set its eos_token")

    def text(self, messages: Sequence[Message], tools: Sequence[Tool], generate: bool = True) -> str:
        """The conversation as the template writes it, ready for the assistant's turn if `generate`."""
        if any(message.images for message in messages):
            raise RenderingFault("this policy takes text only: choose an environment without images")
        plain: list[dict[str, Any]] = [{"role": m.role, "content": m.text} for m in messages]
        schemas: list[dict[Any, Any] | Callable[..., Any]] = [tool.schema() for tool in tools]
        try:
            rendered = self.tokenizer.apply_chat_template(
                plain, tools=schemas or None, add_generation_prompt=generate, tokenize=False
            )
        except Exception as error:  # jinja raises whatever the template's author chose
            raise RenderingFault(f"the chat template refused the conversation: {error}") from error
        return str(rendered)

    def opening(self, messages: Sequence[Message], tools: Sequence[Tool]) -> tuple[str, tuple[int, ...]]:
        """The text and the ids of a first prompt. The last ones are kept: the episodes of a group begin alike, and
        the schemas of many tools take milliseconds."""
        key = (tuple((m.role, m.text, bool(m.images)) for m in messages), repr(tools))
        if key in self._openings:
            self._openings.move_to_end(key)
            return self._openings[key]
        text = self.text(messages, tools)
        self._openings[key] = text, self.encode(text)
        if len(self._openings) > OPENINGS:
            self._openings.popitem(last=False)
        return self._openings[key]

    def encode(self, text: str) -> tuple[int, ...]:
        # The Rust tokenizer itself: its Python front costs several times as much as a short text's encoding.
        fast = getattr(self.tokenizer, "backend_tokenizer", None)
        if fast is not None:
            return tuple(fast.encode(text, add_special_tokens=False).ids)
        return tuple(self.tokenizer.encode(text, add_special_tokens=False))

    def decode(self, ids: Sequence[int]) -> str:
        """The exact text of ids, special tokens included."""
        return self.tokenizer.decode(  # type: ignore[return-value]
            list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False
        )

    def spoken(self, completion_ids: Sequence[int]) -> str:
        """A completion's text without its end-of-turn token."""
        ids = list(completion_ids)
        return self.decode(ids[:-1] if ids and ids[-1] in self.stop_ids else ids)


class Conversation:
    """One episode as the model sees it: feed it observations and sampled ids in turn."""

    def __init__(self, renderer: Renderer) -> None:
        self.renderer = renderer
        self.messages: list[Message] = []
        self.tools: tuple[Tool, ...] = ()
        self.ids: tuple[int, ...] = ()
        self.segment = -1
        self._seen = ""
        """The text of `ids`, without a closing end-of-turn token."""
        self._stopped: int | None = None

    def observe(self, observation: Observation) -> Prompt:
        """Append an observation and give the prompt for the next turn."""
        self.messages.extend(observation.messages)
        self.tools = observation.tools or self.tools
        new_ids: tuple[int, ...] | None
        if self.segment < 0:
            text, new_ids = self.renderer.opening(self.messages, self.tools)
            extends, self.segment = False, 0
        else:
            text = self.renderer.text(self.messages, self.tools)
            new_ids = self._extension(text)
            extends = new_ids is not None
        if new_ids is None:
            new_ids = self.renderer.encode(text)
            self.segment += 1
            self.ids = ()
        self.ids = (*self.ids, *new_ids)
        self._seen, self._stopped = text, None
        return Prompt(self.ids, new_ids, self.segment, extends)

    def said(self, completion_ids: Sequence[int]) -> str:
        """Append what the policy sampled, id for id; returns its text without the end-of-turn token."""
        text = self.renderer.spoken(completion_ids)
        self.ids = (*self.ids, *completion_ids)
        self._seen += text
        last = completion_ids[-1] if completion_ids else None
        self._stopped = last if last in self.renderer.stop_ids else None
        self.messages.append(Message("assistant", text))
        return text

    def _extension(self, text: str) -> tuple[int, ...] | None:
        """The ids that `text` adds to what was seen and said; None where it is not an exact continuation, as with
        templates that rewrite history."""
        if not text.startswith(self._seen):
            return None
        rest = self.renderer.encode(text[len(self._seen) :])
        if self._stopped is None:
            return rest
        return rest[1:] if rest and rest[0] == self._stopped else None
