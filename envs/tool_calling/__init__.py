"""Tool calling: the multi-turn tasks of the Berkeley Function Calling Leaderboard (the `bfcl-eval` package)."""

from importlib.metadata import PackageNotFoundError as _PackageNotFoundError
from importlib.metadata import version as _version

from gymrl.envs.registry import MissingExtra as _MissingExtra

BFCL = "2026.3.23"
"""The version of bfcl-eval whose data and backends the tasks are made of."""
_MEND = f'pip install "gymrl[tool-calling]" && pip install --no-deps bfcl-eval=={BFCL}'

try:
    _found = _version("bfcl-eval")
except _PackageNotFoundError:
    # An extra cannot hold it: what it requires weighs 6.4 GB and an older numpy, and none of that is needed here.
    raise _MissingExtra(
        f"gymrl/ToolCalling-v0 needs the package bfcl-eval, without its requirements: {_MEND}"
    ) from None
if _found != BFCL:
    raise _MissingExtra(f"gymrl/ToolCalling-v0 is made of bfcl-eval {BFCL}, there is {_found}: {_MEND}")
