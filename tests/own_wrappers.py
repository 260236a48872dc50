"""A wrapper and a caption function of one's own, for tests of naming them as module:Class."""

from typing import Any

from gymrl.envs import Action, Environment
from gymrl.envs.wrappers import Wrapper


class Shout(Wrapper):
    """Answers in capitals."""

    def __init__(self, world: Environment, mark: str = "!") -> None:
        super().__init__(world)
        self.mark = mark

    async def step(self, action: Action) -> Any:
        result = await self.inner_step(action)
        return result.observation.text.upper() + self.mark, result.reward, result.terminated


def caption(image: bytes) -> str:
    return "a dog"
