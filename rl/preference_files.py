"""What preferences are learnt from where it is a file: its episodes, as tokens of the policy that is to learn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from gymrl.agents.episodes import read_episodes
from gymrl.agents.records import Episode
from gymrl.agents.rendering import Renderer
from gymrl.rl.demonstrations import DemonstrationFault, has_own_ids, tokenise
from gymrl.rl.pairs import Example, pairs, singles, usable


def read_preferences(
    path: Path, renderer: Renderer, vocabulary: int, paired: bool, longest: int | None, note: Callable[[str], None]
) -> list[Example]:  # fmt: skip
    """Pairs, or single episodes, of a file in any form that `read_episodes` reads. Sampled ids stay as they are; texts
    without ids, and those whose ids are of another tokenizer, are encoded by this one, the latter with a note.

    `vocabulary` is the number of the model's embeddings. Raises DemonstrationFault if there is nothing to learn from,
    ValueError naming file and line where it is broken.
    """
    episodes, foreign = [], 0
    for episode in read_episodes(path):
        if episode.valid and not has_own_ids(episode, renderer, vocabulary):
            foreign += episode.tokens > 0
            episode = tokenise(episode, renderer)
        episodes.append(episode)
    if foreign:
        note(
            f"preference.data: {foreign} of the {len(episodes)} episodes in {path} hold ids of another tokenizer; "
            "their texts are encoded by this policy's"
        )
    found = (pairs if paired else singles)(episodes, longest)
    if not found:
        raise DemonstrationFault(f"preference.data: {_lack(path, episodes, longest)}")
    if not paired and all(example.good for example in found):
        note(f"preference.data: all of the {len(found)} usable episodes in {path} are successes")
    return found


def _lack(path: Path, episodes: Sequence[Episode], longest: int | None) -> str:
    """Why a file gives nothing to learn from, and what would."""
    count = len(episodes)
    if not count:
        return f"{path} holds no episodes: name a file with some (`gymrl collect ID --samples 4` writes one)"
    kept = [episode for episode in episodes if usable(episode, longest)]
    limit = f", or longer than preference.longest={longest} tokens" if longest is not None else ""
    if not kept:
        return f"none of the {count} episodes in {path} is usable: each is invalid, void, cut short{limit}"
    won = sum(episode.success for episode in kept)
    return (
        f"the {count} episodes in {path} make no pair, which takes a usable success and a usable failure of one task "
        f"({won} successes and {len(kept) - won} failures are usable): collect several samples of each task, failures "
        "too, or take preference.loss=kto"
    )
