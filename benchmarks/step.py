"""Wall-clock of whole GRPO steps of the quickstart, and where the time goes.

python benchmarks/step.py [--engine transformers|vllm] [--steps 10] [--pace N|lockstep|free]

Steps that play and learn in turns alternate with steps that play the next one's rollouts meanwhile (`rl.overlap`).
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from accelerate import Accelerator
from common import quickstart, warm_policy

from gymrl.agents.engines import EngineSettings, Sampling, open_engine
from gymrl.agents.players import ModelAgent
from gymrl.agents.rollout import RolloutSettings
from gymrl.envs.workers import EnvPool
from gymrl.rl.learner import Learner, LearnerSettings
from gymrl.rl.policy import load_renderer
from gymrl.rl.trainers.online import Ahead, Played, online_step, play_step


async def steps(engine_kind: str, count: int, pace: str) -> dict[str, list[dict[str, float]]]:
    recipe = quickstart()
    folder = warm_policy(recipe)
    e = recipe.engine
    engine = open_engine(
        EngineSettings(engine_kind, folder, "", e.max_context, e.slots, e.dtype, e.memory_gb)
    )
    pool = EnvPool(recipe.env.id, recipe.env.params)
    agent = ModelAgent("warm", engine, load_renderer(folder), Sampling(max_tokens=recipe.sampling.max_tokens))
    learner = Learner(folder, LearnerSettings(recipe.learner.token_budget), Accelerator(cpu=True))
    settings = RolloutSettings(recipe.env.concurrency, int(pace) if pace.isdigit() else pace)
    overlapped = recipe.rl.model_copy(update={"overlap": True})
    executor = ThreadPoolExecutor(1)
    found: dict[str, list[dict[str, float]]] = {"in turns": [], "overlap": []}

    async def play(step: int) -> Played:
        return await play_step(agent, pool, settings, recipe.rl, step, 0, 0)

    for step in range(0, 2 * (count + 1), 2):
        done = await online_step(learner, engine, partial(play, step), recipe.rl, 1.0, step)
        found["in turns"].append(done.metrics)
        ready = await play(step + 1)  # by the step before, not timed
        ahead = Ahead(partial(play, step + 2), executor)
        done = await online_step(
            learner, engine, partial(asyncio.sleep, 0, ready), overlapped, 1.0, step + 1, ahead=ahead
        )
        found["overlap"].append(done.metrics)
    await pool.aclose()
    await engine.close()
    return {name: metrics[1:] for name, metrics in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--engine", default="transformers")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--pace", default=str(RolloutSettings().pace), help="see engine.pace")
    args = parser.parse_args()
    found = asyncio.run(steps(args.engine, args.steps, args.pace))
    whole: dict[str, float] = {}
    for name, metrics in found.items():
        medians = {k: statistics.median(m[k] for m in metrics) for k in metrics[0] if k.startswith("time/")}
        whole[name] = medians["time/step"]
        beside = ("time/step", *(("time/generate", "time/environment") if name == "overlap" else ()))
        shares = ", ".join(
            f"{k.removeprefix('time/')} {v / whole[name]:.0%}"
            for k, v in medians.items()
            if k not in beside and not k.endswith("_per_second")
        )
        print(
            f"{args.engine}, pace {args.pace}, {name}: one GRPO step {whole[name]:.2f} s (median of {args.steps}): "
            f"{shares}"
        )
    print(f"overlap over in turns: {whole['overlap'] / whole['in turns']:.2f} of the time")


if __name__ == "__main__":
    main()
