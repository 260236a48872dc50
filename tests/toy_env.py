"""A toy environment for tests of the trainer: any text is an action, and even random text is paid, unequally."""

from gymrl.envs import Action, Environment, register


class Letters(Environment):
    """Two turns; each pays the share of the alphabet's first half among the answer's letters."""

    runs = "inline"
    max_turns = 3

    def reset(self) -> str:
        self.turn = 0
        self.word = "".join(self.rng.choice("abcdef") for _ in range(4))
        return f"Say {self.word}."

    def step(self, action: Action) -> tuple[str, float, bool]:
        self.turn += 1
        low = sum(ord(letter) % 2 for letter in action.text)
        return "Again.", low / max(1, len(action.text)) / 2, self.turn == 2

    def recognises(self, action: Action) -> bool:
        return bool(action.text)

    success_reward = 0.4

    def oracle(self) -> str:
        return "aceg" * 2


register("toy/Letters-v0", Letters)

SMALL = [
    "model.tiny={hidden=32, heads=2, kv_heads=1, layers=1}", "sft.demonstrations=8", "sft.steps=2", "sft.batch=4",
    "rl.steps=3", "rl.tasks=2", "rl.group=3", "rl.schedule.warmup=0", "eval.tasks=2", "sampling.max_tokens=6",
    "log.checkpoint_every=1", "log.trackers=[]", 'rl.void="keep"', "env.id=toy/Letters-v0",
]  # fmt: skip
"""Overrides of the quickstart: a whole run on the letters in a second."""
