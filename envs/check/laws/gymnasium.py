"""Gymnasium's own checker passes."""

from __future__ import annotations

import asyncio
import contextlib
import io
import warnings
from collections.abc import Sequence

import gymnasium
from gymnasium.utils.env_checker import check_env

from gymrl.envs.check.records import Fault, Settings, Subject

CLAIM = "Gymnasium's check_env passes"


async def check(subject: Subject, settings: Settings) -> tuple[str, Sequence[Fault]]:
    return await asyncio.to_thread(_check, subject)


def _check(subject: Subject) -> tuple[str, Sequence[Fault]]:
    env = gymnasium.make(subject.env_id, split="train", disable_env_checker=True, **subject.params).unwrapped
    try:
        with warnings.catch_warnings(record=True) as caught, contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("always", UserWarning)
            check_env(env, skip_render_check=False)
    except Exception as error:
        return "", [Fault(f"check_env raised {type(error).__name__}: {error}"[:300])]
    finally:
        with contextlib.suppress(Exception):  # the law `close` tells it
            env.close()
    return f"gymnasium {gymnasium.__version__}, {len(caught)} warnings", []
