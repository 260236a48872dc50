"""TextWorld: generated text adventures (the `textworld` package), one command a turn."""

import numpy as np

_STATE = np.random.get_state()
import textworld as _textworld  # noqa: E402, F401 - draws from numpy's global generator when it is imported

np.random.set_state(_STATE)
