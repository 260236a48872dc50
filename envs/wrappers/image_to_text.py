"""Images as words, for policies that see none."""

from __future__ import annotations

import asyncio
import difflib
import struct
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from gymrl.envs.adapters.functions import load
from gymrl.envs.environment import Environment, StepReturn
from gymrl.envs.records import Action, Message, Observation
from gymrl.envs.wrappers.base import Wrapper, as_return, settled
from gymrl.envs.wrappers.models import ChatModel

QUESTION = (
    "Describe this image for somebody who has to act on it: every text, control and object, and where it is."
)


class ImageToText(Wrapper):
    """Put words in the place of every image.

    by: `world` asks the world's own `describe_image(image)`; `module:function` calls that function with the encoded
    bytes; `http://HOST:PORT/v1#MODEL` asks a model that sees; `size` says no more than how large the image is.
    """

    def __init__(self, world: Environment, by: str = "world", max_tokens: int = 256) -> None:
        super().__init__(world)
        self.model: ChatModel | None = None
        self.describe: Callable[[bytes], Any] = size_of
        if by == "world":
            if not hasattr(world, "describe_image"):
                raise ValueError(
                    f"{type(world).__name__} has no describe_image(image): name a function "
                    "(by = 'module:function') or a model (by = 'http://HOST:PORT/v1#MODEL')"
                )
            self.describe = world.describe_image
        elif by.startswith(("http://", "https://")):
            self.model = ChatModel(by, max_tokens)
        elif by != "size":
            if ":" not in by:
                near = difflib.get_close_matches(by, ("world", "size"), 1, 0.5)
                hint = (
                    f"did you mean {near[0]!r}?" if near else "take world, size, module:function or a model"
                )
                raise ValueError(f"image_to_text knows no by = {by!r}: {hint}")
            self.describe = load("image_to_text's by", by)

    async def reset(self) -> Any:
        observation, info = await self.inner_reset()
        return await self._told(observation), info

    async def step(self, action: Action) -> StepReturn:
        result = await self.inner_step(action)
        return as_return(replace(result, observation=await self._told(result.observation)))

    async def _told(self, observation: Observation) -> Observation:
        messages = [await self._message(message) for message in observation.messages]
        return replace(observation, messages=tuple(messages))

    async def _message(self, message: Message) -> Message:
        if not message.images:
            return message
        words = await asyncio.gather(*(self._words(image) for image in message.images))
        text = "\n".join([message.text, *(f"[image: {text}]" for text in words)] if message.text else
                         [f"[image: {text}]" for text in words])  # fmt: skip
        return replace(message, text=text, images=())

    async def _words(self, image: bytes) -> str:
        if self.model is not None:
            return await self.model.ask([Message("user", QUESTION, (image,))], self.task.seed)
        return str(await settled(self.describe(image)))


def size_of(image: bytes) -> str:
    """The size of a PNG in words; of anything else, how many bytes it has."""
    if image.startswith(b"\x89PNG\r\n\x1a\n") and len(image) >= 24:
        width, height = struct.unpack(">II", image[16:24])
        return f"{width} x {height} pixels"
    return f"{len(image)} bytes"
