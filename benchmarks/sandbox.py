"""Ratios of the sandboxes to a plain subprocess, side by side in one run: `python benchmarks/sandbox.py`.

The same table as `gymrl sandbox bench`; bubblewrap is measured beside them where it is installed.
"""

import asyncio

from gymrl.sandboxes.bench import measure, table

if __name__ == "__main__":
    print(table(asyncio.run(measure())))
