"""Generated tokens/s of the whole rollout loop over the raw engine's on the same prompts and seeds.

    python benchmarks/rollout.py [--engine transformers|vllm] [--concurrency 16 64]
                                    [--repeats 5] [--pace 2 lockstep free] [--seats 1 1.5 2]

The loop plays episodes of the quickstart environment (sandbox, rendering, episode records and all). Its requests are
recorded and given to the engine again, at the same concurrency, with nothing else around. A concurrency is the number
of requests that the engine runs at once, in the loop as without it. `--seats` says how many episodes are played for
each: with more than one the engine has others to go on with while an episode is in its environment.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from functools import partial

from common import alternate, quickstart, warm_policy

from gymrl.agents.engines import EngineSettings, Generation, GenerationRequest, Sampling, open_engine
from gymrl.agents.evaluation import evaluation_jobs
from gymrl.agents.players import ModelAgent
from gymrl.agents.rollout import RolloutSettings, rollout
from gymrl.envs.workers import EnvPool
from gymrl.rl.policy import load_renderer


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--engine", default="transformers")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[16, 64])
    parser.add_argument("--episodes", type=int, default=0, help="0: twelve for each request at once")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--pace", nargs="+", default=["2", "lockstep", "free"], help="see engine.pace")
    parser.add_argument("--seats", type=float, nargs="+", help="1 1.5 2 for vllm, else 1")
    args = parser.parse_args()
    args.seats = args.seats or ([1, 1.5, 2] if args.engine == "vllm" else [1])
    recipe = quickstart()
    folder = warm_policy(recipe)
    e = recipe.engine
    with asyncio.Runner() as loop:
        for concurrency in args.concurrency:
            slots = concurrency if max(args.seats) > 1 else e.slots
            engine = open_engine(
                EngineSettings(args.engine, folder, "", e.max_context, slots, e.dtype, e.memory_gb)
            )
            loop_speed(loop, engine, folder, recipe, concurrency, args)
            loop.run(engine.close())


def loop_speed(loop, engine, folder, recipe, concurrency, args) -> None:
    pool = EnvPool(recipe.env.id, recipe.env.params)
    agent = ModelAgent("warm", engine, load_renderer(folder), Sampling(max_tokens=recipe.sampling.max_tokens))
    many = args.episodes or 12 * concurrency
    jobs = evaluation_jobs([pool.task("train", i) for i in range(many)], 1, 0)
    recorded: list[GenerationRequest] = []
    serve = engine.generate

    async def recording(request):
        recorded.append(request)
        return await serve(request)

    engine.generate = recording
    loop.run(rollout(jobs, agent, pool, RolloutSettings(concurrency, "free")))
    engine.generate = serve

    def whole(seats: int, pace: int | str) -> float:
        began = time.perf_counter()
        episodes = loop.run(rollout(jobs, agent, pool, RolloutSettings(seats, pace)))
        return sum(episode.tokens for episode in episodes) / (time.perf_counter() - began)

    async def bare() -> int:
        queue = iter(recorded)
        done: list[Generation] = []

        async def work() -> None:
            for request in queue:
                done.append(await engine.generate(request))

        await asyncio.gather(*(work() for _ in range(concurrency)))
        return sum(len(generation.ids) for generation in done)

    def raw() -> float:
        began = time.perf_counter()
        return loop.run(bare()) / (time.perf_counter() - began)

    runs = {"raw": raw}
    for factor in args.seats:
        seats = round(factor * concurrency)
        for pace in args.pace:
            runs[f"{seats} episodes, pace {pace}"] = partial(
                whole, seats, int(pace) if pace.isdigit() else pace
            )
    speed = alternate(runs, args.repeats)
    print(f"{args.engine}, {concurrency} at once: raw engine {speed['raw']:.0f} tokens/s; the loop over it:")
    for name, value in speed.items():
        if name != "raw":
            print(f"  {name}: {value / speed['raw']:.2f}", flush=True)
    loop.run(pool.aclose())


if __name__ == "__main__":
    main()
