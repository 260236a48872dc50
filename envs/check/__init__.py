"""The checker: tries the laws that every environment has to keep, and says what is broken and how to see it.

`check("acme/Maze-v0", {"size": 5})` tries all of them in a process of their own; `gymrl envs check acme/Maze-v0 size=5`
prints what it finds.
"""

from gymrl.envs.check.laws import LAWS
from gymrl.envs.check.records import Fault, Report, Settings, Verdict
from gymrl.envs.check.runner import check

__all__ = ["LAWS", "Fault", "Report", "Settings", "Verdict", "check"]
