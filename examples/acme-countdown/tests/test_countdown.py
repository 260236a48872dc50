"""The countdown follows its rules, its oracle wins, and its splits do not overlap."""

import random

from acme_countdown.env import Countdown

from gymrl.envs import make, register

register("acme/Countdown-v0", Countdown)  # so that the test runs before `pip install -e .` too


def test_the_oracle_wins_and_the_random_player_does_not() -> None:
    env = make("acme/Countdown-v0", split="test")
    rewards = {"oracle": 0.0, "random": 0.0}
    for player in rewards:
        rng = random.Random(0)
        for index in range(20):
            env.reset(options={"index": index})
            done = False
            while not done:
                action = env.oracle() if player == "oracle" else env.world.random_action(rng)
                _, reward, terminated, truncated, _ = env.step(action)
                rewards[player] += reward
                done = terminated or truncated
    assert round(rewards["oracle"], 6) == 20 and rewards["random"] < 10


def test_a_game() -> None:
    env = make("acme/Countdown-v0", numbers=2)
    observation, _ = env.reset(options={"index": 0})
    start, step = (int(word) for word in observation.text.strip(".").split() if word.isdigit())
    observation, reward, _, _, info = env.step(f"{start - step}")
    assert (observation.text, reward, info["void"]) == ("Right.", 0.5, False)
    observation, reward, *_ = env.step(f"{start}")
    assert (observation.text, reward) == ("Too high.", 0.0)
    observation, reward, terminated, *_ = env.step(f"{start - 2 * step}")
    assert (reward, terminated) == (0.5, True)


def test_words_are_a_void_turn() -> None:
    env = make("acme/Countdown-v0")
    env.reset(options={"index": 0})
    for text in ("no idea", "4 5", "\x1d5", "٣"):
        observation, reward, _, _, info = env.step(text)
        assert (observation.text, reward, info["void"]) == ("Say one number.", 0.0, True)


def test_splits_do_not_overlap() -> None:
    seen = {}
    for split in ("train", "val", "test"):
        env = make("acme/Countdown-v0", split=split)
        seen[split] = {env.reset(options={"index": index})[0].text for index in range(300)}
    assert not (seen["train"] & seen["val"] or seen["train"] & seen["test"] or seen["val"] & seen["test"])
