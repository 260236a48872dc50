"""Several processes that train one policy: the first one leads, the others follow.

The first process does what a run of one process does: environments, engine, checkpoints, logs. Its learners tell the
others each call before they make it themselves, and the others make the same call.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch._C._distributed_c10d import PrefixStore, TCPStore
from transformers import PreTrainedModel
from transformers.utils import logging as transformers_logging

from gymrl.rl.batches import TokenSequence
from gymrl.rl.learner import Cause, Learner, LearnerSettings, LossOf, StepResult
from gymrl.rl.recipes.models import Recipe
from gymrl.rl.stopping import leave_to_the_first

PATIENCE = timedelta(days=30)
"""How long a process waits for the others: rollouts take as long as they take. One that dies is noticed at once."""
STARTING = timedelta(minutes=10)
LAUNCHED = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "GROUP_RANK",
            "ROLE_RANK", "ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED")  # fmt: skip
"""Environment variables of a launcher. They are for this process, and not for the servers and sandboxes it starts."""


class CrewFault(RuntimeError):
    """The processes cannot work together; the text names the mend."""


def launched() -> bool:
    """Whether this process was started as one of several, by `accelerate launch` or torchrun."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def follows() -> bool:
    """Whether it is not the first of them."""
    return launched() and os.environ.get("RANK", "0") != "0"


_shards = [False]
"""Whether learners that are opened now are split over the processes."""


@contextmanager
def crew(processes: int = 1, shard: bool = False) -> Iterator[None]:
    """Inside it, learners of `open_learner` work on all processes: those a launcher started, or `processes` of this
    machine, the others of which are started here. `shard` splits them over the processes. Raises CrewFault."""
    if shard and processes == 1 and not launched():
        raise CrewFault("--shard splits the model over several processes: add --processes N")
    _shards[0] = shard
    if launched():
        if processes > 1:
            raise CrewFault("a launcher has started several processes already: leave --processes out")
        _meet()
        followers: list[subprocess.Popen[bytes]] = []
    elif processes > 1:
        followers = _start(processes)
    else:
        yield
        return
    try:
        yield
    finally:
        _dismiss(followers)


def size() -> int:
    """The number of processes at work."""
    return dist.get_world_size() if dist.is_initialized() else 1


def open_learner(
    model: str | Path | PreTrainedModel, settings: LearnerSettings, accelerator: Accelerator
) -> Learner:
    """A learner on all processes of the crew; without a crew, on this one. Only the first process calls it."""
    if size() == 1:
        return Learner(model, settings, accelerator)
    return LeadingLearner(model, replace(settings, shard=_shards[0]), accelerator)


def check_crew(recipe: Recipe) -> None:
    """Raise CrewFault where the recipe asks for what several processes cannot do."""
    if size() == 1:
        return
    if "es" in recipe.stages:
        raise CrewFault("the stage es takes no gradients that processes could share: train it in one process")
    if _shards[0] and recipe.learner.trainable.name != "all":
        raise CrewFault(
            "--shard is for models that are trained whole: set learner.trainable=all, or leave it out"
        )
    anchored = recipe.sft.tokens is not None and recipe.sft.tokens.anchor > 0
    if "sft" in recipe.stages and anchored:
        raise CrewFault("sft.tokens.anchor is for one process: leave it out, or train in one process")
    if _shards[0] and "rl" in recipe.stages and recipe.rl.prefix is not None:
        raise CrewFault("rl.prefix needs the whole model in the first process: leave --shard out")


class LeadingLearner(Learner):
    """The first process's learner: what it does, the learners of the other processes do too."""

    _opened = 0
    _closed: list[int] = []  # noqa: RUF012 - of all of them

    def __init__(
        self, model: str | Path | PreTrainedModel, settings: LearnerSettings, accelerator: Accelerator
    ) -> None:
        self.key = LeadingLearner._opened = LeadingLearner._opened + 1
        _tell("open", self.key, model, settings, accelerator.mixed_precision)
        super().__init__(model, settings, accelerator)
        # Not told when it happens, which may be in any thread, but with the next message.
        weakref.finalize(self, LeadingLearner._closed.append, self.key)

    def reset_optimizer(self) -> None:
        _tell("call", self.key, "reset_optimizer")
        super().reset_optimizer()

    def step(
        self, sequences: Sequence[TokenSequence], weights_S: Sequence[float], loss_of: LossOf, lr: float,
        temperature: float = 1.0,
    ) -> StepResult:  # fmt: skip
        _tell("call", self.key, "step", sequences, weights_S, loss_of, lr, temperature)
        return super().step(sequences, weights_S, loss_of, lr, temperature)

    def gradient_norms(
        self, sequences: Sequence[TokenSequence], weights_S: Sequence[float], loss_of: LossOf,
        causes: Mapping[str, Cause], temperature: float = 1.0,
    ) -> dict[str, float]:  # fmt: skip
        _tell("call", self.key, "gradient_norms", sequences, weights_S, loss_of, causes, temperature)
        return super().gradient_norms(sequences, weights_S, loss_of, causes, temperature)

    def score(
        self, sequences: Sequence[TokenSequence], temperature: float = 1.0, adapter: bool = True
    ) -> list[torch.Tensor]:
        _tell("call", self.key, "score", sequences, temperature, adapter)
        return super().score(sequences, temperature, adapter)

    def weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        if self.sharded:
            _tell("call", self.key, "weights")
        return super().weights()

    def state(self) -> dict[str, Any]:
        if self.sharded:
            _tell("call", self.key, "state")
        return super().state()

    def load_state(self, state: dict[str, Any]) -> None:
        _tell("call", self.key, "load_state", state)
        super().load_state(state)


# -- the other processes -----------------------------------------------------------------------------------


def follow() -> None:
    """Do what the first process says, until it has nothing more to say or is gone."""
    transformers_logging.disable_progress_bar()
    _meet()
    leave_to_the_first()  # not earlier: who waits for a first one that never came has to be ended
    learners: dict[int, Learner] = {}
    while True:
        try:
            closed, words = _hear()
        except RuntimeError:  # the first process died
            return
        for key in closed:
            learners.pop(key, None)
        if not words:
            dist.destroy_process_group()
            return
        kind, key, *rest = words
        if kind == "open":
            model, settings, precision = rest
            accelerator = Accelerator(mixed_precision=precision, cpu=not torch.cuda.is_available())
            learners[key] = Learner(model, settings, accelerator)
        else:
            getattr(learners[key], rest[0])(*rest[1:])
            learners[key].troubles.clear()  # the first process tells of them


def _tell(*words: Any) -> None:
    closed = [LeadingLearner._closed.pop() for _ in range(len(LeadingLearner._closed))]
    try:
        message = pickle.dumps((closed, words))
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise CrewFault(
            f"this part of the recipe cannot be worked on by several processes ({error}): train it in one process"
        ) from error
    dist.broadcast_object_list([message], src=0)


def _hear() -> tuple[list[int], tuple[Any, ...]]:
    box: list[Any] = [None]
    dist.broadcast_object_list(box, src=0)
    found: tuple[list[int], tuple[Any, ...]] = pickle.loads(box[0])
    return found


# -- coming together ---------------------------------------------------------------------------------------


def _backend() -> str:
    return "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"


def _meet() -> None:
    """Join the processes that the environment variables of a launcher speak of, and forget those."""
    variables = {name: os.environ.pop(name) for name in LAUNCHED if name in os.environ}
    rank, many = int(variables["RANK"]), int(variables["WORLD_SIZE"])
    if torch.cuda.is_available():
        torch.cuda.set_device(int(variables.get("LOCAL_RANK", "0")))
    joins = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"  # then the launcher holds the store
    store = TCPStore(
        variables["MASTER_ADDR"], int(variables["MASTER_PORT"]), many, rank == 0 and not joins, STARTING
    )
    dist.init_process_group(
        _backend(), store=PrefixStore("gymrl", store), rank=rank, world_size=many, timeout=PATIENCE
    )


def _start(processes: int) -> list[subprocess.Popen[bytes]]:
    """Start the other processes and join them."""
    if torch.cuda.is_available() and torch.cuda.device_count() < processes:
        raise CrewFault(
            f"--processes {processes} on {torch.cuda.device_count()} GPUs: each process needs a GPU of its own"
        )
    store = TCPStore("127.0.0.1", 0, processes, True, STARTING, wait_for_workers=False)
    threads = str(max(1, (os.cpu_count() or 1) // processes))
    told = "OMP_NUM_THREADS" in os.environ
    followers = []
    for rank in range(1, processes):
        variables = {
            "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(store.port), "OMP_NUM_THREADS": threads,
        }  # fmt: skip
        command = [sys.executable, "-m", "gymrl.rl.crew"]
        surroundings = {**variables, **os.environ} if told else {**os.environ, **variables}
        # In a session of its own: Ctrl-C is for the first process.
        followers.append(
            subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True, env=surroundings)
        )
    if not told:
        torch.set_num_threads(int(threads))
    dist.init_process_group(
        _backend(), store=PrefixStore("gymrl", store), rank=0, world_size=processes, timeout=PATIENCE
    )
    return followers


def _dismiss(followers: Sequence[subprocess.Popen[bytes]]) -> None:
    """Say that all is done, and see the followers off."""
    try:
        _tell()
        dist.destroy_process_group()
    except RuntimeError:
        pass  # one of them died before, and the others notice
    for process in followers:
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:  # it waits in the middle of a call that failed here
            process.kill()
            process.wait()


if __name__ == "__main__":
    follow()
