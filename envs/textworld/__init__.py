"""TextWorld: generated text adventures (the `textworld` package), one command a turn."""
