"""Environments: the contract, the registry, and one folder per family.

`import gymrl.envs` registers every environment with Gymnasium, so that
`gymnasium.make("gymrl.envs:gymrl/CodeInterpreter-v0", split="train")` works.
"""

from gymrl.envs.environment import Environment
from gymrl.envs.gym import EnvironmentFault, GymEnv, StepResult
from gymrl.envs.marks import answer, code_blocks
from gymrl.envs.records import Action, Message, Observation, TaskSpec, Tool, ToolCall
from gymrl.envs.registry import (
    MissingExtra,
    UnknownEnvironment,
    entry,
    make,
    register,
    registered,
)

__all__ = [
    "Action",
    "Environment",
    "EnvironmentFault",
    "GymEnv",
    "Message",
    "MissingExtra",
    "Observation",
    "StepResult",
    "TaskSpec",
    "Tool",
    "ToolCall",
    "UnknownEnvironment",
    "answer",
    "code_blocks",
    "entry",
    "make",
    "register",
    "registered",
]

register("gymrl/CodeInterpreter-v0", "gymrl.envs.code_interpreter.env:CodeInterpreter")
register("gymrl/TextWorld-v0", "gymrl.envs.textworld.env:TextWorld", extra="textworld")
register("gymrl/MathTools-v0", "gymrl.envs.math_tools.env:MathTools", extra="math")
register("gymrl/GuiNavigation-v0", "gymrl.envs.gui_navigation.env:GuiNavigation", extra="gui")
register("gymrl/Mcp-v0", "gymrl.envs.mcp_tools.env:Mcp", extra="mcp")
register("gymrl/ToolCalling-v0", "gymrl.envs.tool_calling.env:ToolCalling", extra="tool-calling")
register("gymrl/MiniWoB-v0", "gymrl.envs.web_pages.env:MiniWoB", extra="web")
register("gymrl/Gymnasium-v0", "gymrl.envs.adapters.gymnasium:GymnasiumText")
register("gymrl/OpenEnv-v0", "gymrl.envs.adapters.openenv:OpenEnv", extra="openenv")
registered()  # finds the environments of installed packages
