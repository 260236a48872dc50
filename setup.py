"""The top-level folders are the subpackages of the namespace package `gymrl` (see pyproject.toml)."""

from setuptools import find_packages, setup

HOUSE = ("sandboxes", "envs", "agents", "rl", "leaderboards", "cli")

setup(
    packages=[
        name
        for top in HOUSE
        for name in (f"gymrl.{top}", *(f"gymrl.{top}.{sub}" for sub in find_packages(top)))
    ]
)
