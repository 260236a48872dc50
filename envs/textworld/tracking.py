"""Which actions a game's state allows, found faster.

After every command TextWorld looks up anew which of its rules apply, which is a third of a step. `quicken` has a game
do the same search, in the same order, with what depends on the rules alone worked out once a game, and without rules
of which one condition has no fact at all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import textworld
from textworld.generator.game import GameProgression
from textworld.logic import Signature


@dataclass(frozen=True, slots=True)
class _Condition:
    """One precondition of a rule: its placeholders, those that no condition before it has, and the signatures of the
    facts that meet it."""

    parameters: tuple[Any, ...]
    fresh: tuple[Any, ...]
    signatures: tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class _Plan:
    rule: Any
    conditions: tuple[_Condition, ...]
    free: list[Any]
    """Placeholders that are in no condition."""


class Progression(GameProgression):  # type: ignore[misc]
    """A game's progression that goes on from another's."""

    def __init__(self, begun: GameProgression) -> None:
        self.__dict__.update(begun.__dict__)
        constants = self.game.kb.types.constants_mapping
        types = self.state._logic.types
        self._plans = [_plan(rule, constants, types) for rule in self.game.kb.rules.values()]

    def update(self, action: Any) -> None:
        self.state.apply(action)
        self._valid_actions = self.applicable()
        for quest in self.quest_progressions:
            quest.update(action, self.state)

    def applicable(self) -> list[Any]:
        """What the state's `all_applicable_actions` gives for the rules of the game."""
        found: list[Any] = []
        mapping = dict(self.game.kb.types.constants_mapping)
        used = set(mapping.values())
        facts = self.state._facts
        for plan in self._plans:
            for condition in plan.conditions:
                if not any(map(facts.get, condition.signatures)):
                    break
            else:
                _assign(plan, 0, self.state, mapping, used, found)
        return found


def quicken(game: textworld.Environment) -> None:
    """Have a game that was just reset search the quick way."""
    layer: Any = game
    while "_game_progression" not in vars(layer):
        layer = layer._wrapped_env
    layer._game_progression = Progression(layer._game_progression)


def _plan(rule: Any, constants: Any, types: Any) -> _Plan:
    seen, conditions = set(constants), []
    for predicate in rule.preconditions:
        fresh = tuple(dict.fromkeys(each for each in predicate.parameters if each not in seen))
        seen.update(fresh)
        kinds = types.multi_subtypes([types.get(name) for name in predicate.signature.types])
        name = predicate.signature.name
        signatures = tuple(Signature(name, [each.name for each in kind]) for kind in kinds)
        conditions.append(_Condition(tuple(predicate.parameters), fresh, signatures))
    return _Plan(rule, tuple(conditions), [each for each in rule.placeholders if each not in seen])


def _assign(plan: _Plan, depth: int, state: Any, mapping: Any, used: set[Any], found: list[Any]) -> None:
    """Add the actions that meet the conditions from `depth` on, with the placeholders before them as mapped."""
    if depth == len(plan.conditions):
        if plan.free:
            found.extend(map(plan.rule.instantiate, state._all_assignments(plan.free, mapping, used, False)))
        else:
            found.append(plan.rule.instantiate(mapping))
        return
    condition = plan.conditions[depth]
    for signature in condition.signatures:
        facts = state._facts.get(signature)
        if not facts:
            continue
        for fact in sorted(facts) if len(facts) > 1 else tuple(facts):
            for placeholder, variable in zip(condition.parameters, fact.arguments, strict=False):
                known = mapping.get(placeholder)
                if known is None:
                    if variable in used:
                        break
                    mapping[placeholder] = variable
                    used.add(variable)
                elif known != variable:
                    break
            else:
                _assign(plan, depth + 1, state, mapping, used, found)
            for placeholder in condition.fresh:
                if (variable := mapping.pop(placeholder, None)) is not None:
                    used.discard(variable)
