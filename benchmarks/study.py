"""The learning study: algorithms and settings side by side, over seeds, on tasks that take seconds.

    python benchmarks/study.py [--seeds 0,1,2] [--only QUESTION,...] [--minutes 30] [--out runs/study]
        [--start ARM=FOLDER] [--set KEY=VALUE ...]

One process, one run after the other: seed by seed within each question, so that what is there at any moment compares
arms on the same seeds. Runs that are finished are not made again; after --minutes, Ctrl-C or SIGTERM the present
run is checkpointed, and the same command goes on. `results.csv`, `results.md` and a plot for each question are
written anew after every run; --results alone writes them. Arms go on from the policy of another arm (SFT alone) that
is made once for every seed, or from a checkpoint of yours for all seeds; --set lays settings over all runs. Several
processes may share a folder: each takes the runs that no other is at.
"""

from __future__ import annotations

import argparse
import fcntl
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import common  # noqa: F401 (first: it sets how torch's threads wait)

# isort: split

import numpy as np
from study_plan import ARMS, COMMON, QUESTIONS, Arm, Question
from study_results import write_results

from gymrl.rl import batches
from gymrl.rl.folder import RunFolder
from gymrl.rl.run import INTERRUPTED, train
from gymrl.rl.trainers import update


class Stopped(Exception):
    """Time is up: what is finished stays, and the same command goes on."""


def place(out: Path, arm: Arm, seed: int) -> Path:
    return out / arm.name / f"seed-{seed}"


def settings_of(arm: Arm, seed: int, start: Path | None) -> list[str]:
    """The overrides of an arm's run; `start` is the folder of the policy it goes on from."""
    given = [*COMMON, *arm.settings, f"seed={seed}", f"name={arm.name}"]
    if start is not None:
        given += ['stages=["rl"]', f"model.path={start}"]
    return given


def make(
    arm: Arm, seed: int, out: Path, extra: Sequence[str], starts: Mapping[str, Path], wait: bool = False
) -> bool:
    """Make an arm's run, or go on with it, the start's before it; whether there was anything to do. A run that another
    process is at is left to it, or waited for.

    Raises Stopped where it was interrupted.
    """
    folder, start = place(out, arm, seed), None
    if done(folder):
        return False
    if arm.start in starts:
        start = starts[arm.start].resolve()
    elif arm.start:
        before = ARMS[arm.start]
        make(before, seed, out, extra, starts, wait=True)
        start = (place(out, before, seed) / "policy").resolve()
    with alone(folder, wait) as mine:
        if not mine or done(folder):
            return False
        with trained_on_observations() if arm.unmasked else nothing():
            if (folder / "state.json").exists():
                code = train(None, [], resume=folder)
            else:
                code = train(arm.recipe, [*settings_of(arm, seed, start), *extra], out=folder)
    if code == INTERRUPTED:
        raise Stopped
    return True


def done(folder: Path) -> bool:
    return (folder / "recipe.toml").exists() and RunFolder.open(folder).finished()


@contextmanager
def alone(folder: Path, wait: bool) -> Iterator[bool]:
    """Whether no other process is at the run of that folder; none begins with it meanwhile."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f".{folder.name}.lock").open("w") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except (BlockingIOError, PermissionError):
            yield False
        else:
            yield True


@contextmanager
def nothing() -> Iterator[None]:
    yield


@contextmanager
def trained_on_observations() -> Iterator[None]:
    """What gymrl never does: observations between a policy's turns carry the loss that its own tokens carry. For runs
    whose advantage is one number an episode, with one update a step and no correction."""

    def unmasked(*args: Any, **named: Any) -> list[batches.TokenSequence]:
        return [with_observations(s) for s in batches.sequences_of(*args, **named)]

    before = update.sequences_of
    update.sequences_of = unmasked  # type: ignore[assignment]
    try:
        yield
    finally:
        update.sequences_of = before


def with_observations(sequence: batches.TokenSequence) -> batches.TokenSequence:
    """The sequence with loss on everything after its first sampled token, at that token's advantage."""
    said = np.flatnonzero(sequence.action)
    if not len(said):
        return sequence
    after = np.arange(sequence.tokens) >= said[0]
    spread = np.where(after, sequence.advantage[said[0]], np.float32(0)).astype(np.float32)
    return replace(sequence, action=after, advantage=spread)


def study(
    questions: Sequence[Question], seeds: Sequence[int], out: Path, extra: Sequence[str] = (),
    starts: Mapping[str, Path] = MappingProxyType({}),
) -> None:  # fmt: skip
    """All runs that are not there yet, and the results after each."""
    for question in questions:
        for seed in question.seeds or seeds:
            for name in question.arms:
                if make(ARMS[name], seed, out, extra, starts):
                    write_results(out)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--only", default=",".join(q.name for q in QUESTIONS), help="questions, with commas")
    parser.add_argument("--minutes", type=float, default=0.0, help="stop after so many; 0: never")
    parser.add_argument("--out", type=Path, default=Path("runs/study"))
    parser.add_argument("--start", action="append", default=[], metavar="ARM=FOLDER")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--results", action="store_true", help="run nothing, write the results")
    args = parser.parse_args()
    seeds = [int(seed) for seed in args.seeds.split(",")]
    by_name = {question.name: question for question in QUESTIONS}
    unknown = set(args.only.split(",")) - set(by_name)
    if unknown:
        parser.error(f"no question is named {', '.join(sorted(unknown))}: take {', '.join(by_name)}")
    starts = {name: Path(folder) for name, _, folder in (given.partition("=") for given in args.start)}
    from_others = sorted({arm.start for arm in ARMS.values() if arm.start})
    if set(starts) - set(from_others) or not all(folder.is_dir() for folder in starts.values()):
        parser.error(f"--start is ARM=FOLDER, with a checkpoint's folder and one of {', '.join(from_others)}")
    args.out.mkdir(parents=True, exist_ok=True)
    for number in (signal.SIGTERM, signal.SIGALRM):
        signal.signal(number, lambda *_: signal.raise_signal(signal.SIGINT))
    if args.minutes:
        signal.setitimer(signal.ITIMER_REAL, 60 * args.minutes)
    began = time.perf_counter()
    try:
        if not args.results:
            study([by_name[name] for name in args.only.split(",")], seeds, args.out, args.set, starts)
            print("complete")
    except (Stopped, KeyboardInterrupt):
        print("stopped; the same command goes on")
    signal.setitimer(signal.ITIMER_REAL, 0)
    write_results(args.out)
    print(f"{time.perf_counter() - began:.0f} s; results in {args.out}/results.md")


if __name__ == "__main__":
    main()
