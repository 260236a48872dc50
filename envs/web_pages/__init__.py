"""MiniWoB++ pages in a real Chromium: `gymrl/MiniWoB-v0` is in `env`, its browser in `browser`."""
