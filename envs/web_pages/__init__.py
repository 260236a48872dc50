"""MiniWoB++ pages in a real Chromium. `gymrl/MiniWoB-v0` is in `env`, the browser in `browser`, the actions in `grammar`."""
