"""New weights on their way to another process: a safetensors file, in shared memory where there is some."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file

from gymrl.agents.engines.base import EngineFault

WEIGHTS_FOLDER = "GYMRL_WEIGHTS_FOLDER"
"""Environment variable: a folder that this machine and a joined server's both see; default is shared memory."""


class Handover:
    """A folder of one's own, made with the first weights."""

    def __init__(self) -> None:
        self._folder: Path | None = None

    def write(self, tensors: Mapping[str, torch.Tensor]) -> Path:
        """The file, which is the caller's to unlink. Raises EngineFault if there is no room."""
        if self._folder is None:
            shared = Path("/dev/shm")
            default = str(shared) if shared.is_dir() else None
            self._folder = Path(
                tempfile.mkdtemp(prefix="gymrl-", dir=os.environ.get(WEIGHTS_FOLDER, default))
            )
        path = self._folder / "weights.safetensors"
        seen: set[int] = set()
        state = {}
        for name, tensor in tensors.items():
            copy = tensor.detach().cpu().contiguous()
            # Two names for one storage (tied weights) are not allowed in the file.
            state[name] = copy.clone() if copy.data_ptr() in seen else copy
            seen.add(copy.data_ptr())
        try:
            save_file(state, path)
        except OSError as error:
            path.unlink(missing_ok=True)
            raise EngineFault(
                f"the weights cannot be written to {path} ({error}): make room there, or name another folder "
                f"in {WEIGHTS_FOLDER}"
            ) from error
        return path

    def close(self) -> None:
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None
