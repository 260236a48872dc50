"""The environments of a run, opened before there is a run folder: what is wrong with them shows at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from gymrl.envs.workers import EnvPool
from gymrl.rl.recipes import Recipe, shipped


def open_pool(recipe: Recipe) -> EnvPool:
    """The environments of a recipe; those of its demonstrations are tried too, so that a wrong parameter shows now."""
    if recipe.sft.params:
        EnvPool(recipe.env.id, {**recipe.env.params, **recipe.sft.params}).close()
    c = recipe.rl.curriculum
    for stage in c.stages if c is not None else ():
        if isinstance(stage, dict):
            EnvPool(recipe.env.id, {**recipe.env.params, **stage}).close()
    pool = EnvPool(recipe.env.id, recipe.env.params, recipe.env.workers)
    for split in (recipe.eval.split, *["val"] * bool(recipe.eval.every)):
        if not pool.template.world.sizes[split]:
            pool.close()
            raise ValueError(
                f"{recipe.env.id} has no tasks in {split}: give it some, or take another eval.split"
            )
    return pool


def asked_for_tasks(recipe: str, loaded: Recipe, overrides: Sequence[str], resumed: bool = False) -> bool:
    """Whether the user wrote how many tasks are held out: on the command line, or in a recipe that is not gymrl's. That
    of a resumed run is no new wish."""
    pairs = [override.partition("=") for override in overrides]
    if any(
        key.strip() == "eval.tasks" or (key.strip() == "eval" and "tasks" in value) for key, _, value in pairs
    ):
        return True
    return not resumed and recipe not in shipped() and "tasks" in loaded.eval.model_fields_set


def fit_tasks(recipe: Recipe, pool: EnvPool, asked: bool, note: Callable[[str], None]) -> Recipe:
    """The recipe with no more held-out tasks than there are. Raises ValueError if the user asked for more."""
    e, sizes = recipe.eval, pool.template.world.sizes
    size = sizes[e.split]
    if asked and e.tasks > size:
        pool.close()
        raise ValueError(
            f"eval.tasks = {e.tasks}: {recipe.env.id} has {size} tasks in {e.split}; set {size} or less"
        )
    if e.tasks > size:
        note(f"{recipe.env.id} has {size} tasks in {e.split}: all are held out, eval.tasks = {size}")
        recipe = recipe.model_copy(update={"eval": e.model_copy(update={"tasks": size})})
    if e.every and recipe.eval.tasks > sizes["val"]:
        note(f"{recipe.env.id} has {sizes['val']} tasks in val: looks on the way are at those")
    return recipe
