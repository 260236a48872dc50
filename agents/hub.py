"""Whether a hub can give a model, asked once and for seconds: the libraries that load one try for minutes."""

from __future__ import annotations

import httpx

PATIENCE = 10.0
"""Seconds for the hub's first answer."""


def out_of_reach(name: str) -> str:
    """Why the model of that hub name cannot be had; '' if it lies in the cache or the hub answers."""
    from huggingface_hub import constants, try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        if constants.is_offline_mode() or isinstance(try_to_load_from_cache(name, "config.json"), str):
            return ""  # offline, what is not cached is refused by name and at once
    except HFValidationError:
        return ""  # no hub name: whoever loads it says so
    try:
        httpx.head(constants.ENDPOINT, timeout=PATIENCE)
    except httpx.HTTPError as error:
        reason = str(error) or type(error).__name__
        return f"it is not in the cache of this machine, and {constants.ENDPOINT} does not answer ({reason})"
    return ""
