"""Wall-clock of whole GRPO steps of the quickstart, and where the time goes.

python benchmarks/step.py [--engine transformers|vllm] [--steps 10] [--pace N|lockstep|free]
"""

from __future__ import annotations

import argparse
import asyncio
import statistics

from accelerate import Accelerator
from common import quickstart, warm_policy

from gymrl.agents.engines import EngineSettings, Sampling, open_engine
from gymrl.agents.players import ModelAgent
from gymrl.agents.rollout import RolloutSettings
from gymrl.envs.workers import EnvPool
from gymrl.rl.learner import Learner, LearnerSettings
from gymrl.rl.policy import load_renderer
from gymrl.rl.trainers.online import online_step


async def steps(engine_kind: str, count: int, pace: str) -> list[dict[str, float]]:
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
    found = []
    for step in range(count + 1):
        done = await online_step(learner, agent, pool, settings, recipe.rl, 1.0, step, 0, 0)
        found.append(done.metrics)
    await pool.aclose()
    await engine.close()
    return found[1:]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--engine", default="transformers")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--pace", default=str(RolloutSettings().pace), help="see engine.pace")
    args = parser.parse_args()
    found = asyncio.run(steps(args.engine, args.steps, args.pace))
    medians = {k: statistics.median(m[k] for m in found) for k in found[0] if k.startswith("time/")}
    whole = medians["time/step"]
    shares = ", ".join(
        f"{k.removeprefix('time/')} {v / whole:.0%}" for k, v in medians.items() if k != "time/step"
    )
    print(f"{args.engine}, pace {args.pace}: one GRPO step {whole:.2f} s (median of {args.steps}): {shares}")


if __name__ == "__main__":
    main()
