"""Engines: what serves a policy. One file each, opened by `open_engine`."""

from gymrl.agents.engines.base import (
    Engine,
    EngineFault,
    EngineSettings,
    Generation,
    GenerationRequest,
    Sampling,
    open_engine,
)

__all__ = [
    "Engine",
    "EngineFault",
    "EngineSettings",
    "Generation",
    "GenerationRequest",
    "Sampling",
    "open_engine",
]
