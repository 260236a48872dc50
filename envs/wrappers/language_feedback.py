"""Language feedback by a critic, after every turn that does not end the episode (MINT, Wang et al. 2024)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from gymrl.envs.environment import Environment, StepReturn
from gymrl.envs.records import Action, Message, Observation
from gymrl.envs.wrappers.base import Wrapper, as_return, offers, settled, with_note
from gymrl.envs.wrappers.hints import shown
from gymrl.envs.wrappers.models import ChatModel

INSTRUCTIONS = (
    "You watch an assistant solve a task and give it short feedback in words, in at most three sentences. Say what is "
    "right and what is wrong with its last turn and what to think about next. Never give the solution away."
)


class LanguageFeedback(Wrapper):
    """Add a critic's words to each observation.

    critic: `scripted`, which compares the turn with what the oracle would have said and done, or a model's address,
    `http://HOST:PORT/v1#MODEL`. informed: whether the critic knows the oracle's action; an uninformed scripted one
    only tells void turns and rewards. every: turns between two words of feedback. A model that cannot be reached
    makes the episode invalid. The world then is the same in every run as far as the model's answers are.
    """

    state = ("turns", "transcript")

    def __init__(
        self, world: Environment, critic: str = "scripted", informed: bool = True, every: int = 1,
        max_tokens: int = 256, timeout: float = 60.0,
    ) -> None:  # fmt: skip
        super().__init__(world)
        if every < 1:
            raise ValueError(f"language_feedback takes every of 1 or more, not {every}")
        self.critic = critic
        self.model = None if critic == "scripted" else ChatModel(critic, max_tokens, timeout)
        self.informed, self.every = informed and offers(world, "oracle"), every

    async def reset(self) -> Any:
        observation, info = await self.inner_reset()
        self.turns = 0
        self.transcript = [observation.text]
        return observation, info

    async def step(self, action: Action) -> StepReturn:
        expected = await self._expected() if self.informed else None
        void = not action.tool_calls and not self.world.recognises(action)
        result = await self.inner_step(action)
        self.turns += 1
        self.transcript += [f"Assistant: {shown(action)}", f"Environment: {result.observation.text}"]
        if result.terminated or result.truncated or self.turns % self.every:
            return as_return(result)
        if self.model is None:
            words = scripted(action, expected, void, result.reward)
        else:
            words = await self._asked(expected)
        observation: Observation = (
            with_note(result.observation, f"Feedback: {words}") if words else result.observation
        )
        return as_return(replace(result, observation=observation, info={**result.info, "feedback": words}))

    async def _expected(self) -> Action | None:
        try:
            return Action.of(await settled(self.world.oracle()))
        except NotImplementedError:
            return None

    async def _asked(self, expected: Action | None) -> str:
        assert self.model is not None
        text = "\n\n".join(self.transcript)
        if expected is not None:
            text += f"\n\nFor you alone, what an expert would have said in its last turn:\n{shown(expected)}"
        return await self.model.ask([Message("system", INSTRUCTIONS), Message("user", text)], self.task.seed)


def scripted(action: Action, expected: Action | None, void: bool, reward: float) -> str:
    """What the scripted critic says of a turn."""
    if void:
        return "There was nothing in your turn to act on. Use the form that the task asks for."
    if reward != 0:
        return "That was progress." if reward > 0 else "That cost you something."
    if expected is None:
        return "That changed nothing that counts."
    same = (action.text.strip(), action.tool_calls) == (expected.text.strip(), expected.tool_calls)
    return "That was a good step." if same else "An expert would have done something else."
