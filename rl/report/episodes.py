"""Which episodes a report shows, and how: turns as chat bubbles, tokens shaded by how likely they were."""

from __future__ import annotations

import base64
import json
import math
import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from markupsafe import escape
from tokenizers import Tokenizer

from gymrl.agents.records import Episode, Turn, episode_from_json
from gymrl.envs.records import Message, ToolCall
from gymrl.rl.report.files import read_episodes
from gymrl.rl.report.stages import NAMES, heading, named

Kind = Literal["success", "failure", "void", "invalid"]
KINDS: tuple[Kind, ...] = ("success", "failure", "void", "invalid")

BUDGET = 1_200_000
"""Bytes of HTML that all episodes together may take, images apart."""
IMAGE_BUDGET = 600_000
MOST_TURNS = 40
MOST_TEXT = 6000
"""Characters of one message."""
MOST_TOKENS = 300
"""Tokens of one turn that can be shown."""
MOST_EPISODE_TOKENS = 1000
MOST_PASSED_OVER = 200
"""Episodes of one file that could not be shown, before the search in it ends."""
WRONG_FIELD = (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError)
"""What reading an episode raises where a field has the wrong type."""
SURPRISES = [-math.log(p) for p in (0.99, 0.95, 0.9, 0.75, 0.5, 0.25, 0.1, 0.03, 0.01)]
"""Bounds between the ten shades of a token: its negative logprob, in nats."""

_FENCE = re.compile(r"```[ \t]*([\w+-]*)[ \t]*\n(.*?)```", re.DOTALL)
_UNSEEN = {code: 0x2400 + code for code in range(32) if code not in (9, 10)} | {127: 0x2421}
_UNSEEN |= dict.fromkeys([*range(0x80, 0xA0), *range(0xD800, 0xE000), 0xFFFE, 0xFFFF], 0xFFFD)


@dataclass(frozen=True)
class Piece:
    """A stretch of a message: running text, or the body of a fenced code block in `language`."""

    text: str
    code: bool = False
    language: str = ""


@dataclass(frozen=True)
class Bubble:
    """One message. `images` are data URIs; `left_out` says what is not shown."""

    role: str
    pieces: list[Piece]
    calls: list[str]
    images: list[str]
    left_out: str = ""


@dataclass(frozen=True)
class Token:
    """A sampled token: its text (or id), its shade from 0 (certain) to 9, and what a tooltip says."""

    text: str
    shade: int
    title: str


@dataclass(frozen=True)
class TurnView:
    number: int
    seen: list[Bubble]
    said: Bubble
    facts: list[str]
    void: bool
    segment: int
    tokens: list[Token]
    more_tokens: int


@dataclass(frozen=True)
class EpisodeView:
    """One episode as the page shows it."""

    kind: Kind
    title: str
    task: str
    outcome: str
    facts: list[str]
    turns: list[TurnView]
    skipped_turns: int
    closing: list[Bubble]


@dataclass(frozen=True)
class Shelf:
    """The episodes of one stage."""

    title: str
    source: str
    episodes: list[EpisodeView]


def kind_of(episode: Episode) -> Kind:
    """A success is one whatever its turns; a void episode is one that failed after a void turn."""
    if not episode.valid:
        return "invalid"
    if episode.success:
        return "success"
    return "void" if episode.void else "failure"


def choose_shelves(run: Path, order: Sequence[str] = tuple(NAMES)) -> list[Shelf]:
    """A few episodes of every stage, in this order: successes, failures, void and invalid ones, within the budgets of
    size."""
    # Until the run has ended the tokenizer is only beside a checkpoint.
    files = [run / "policy" / "tokenizer.json", *sorted(run.glob("checkpoints/*/tokenizer.json"))]
    viewer = Viewer(next(filter(None, map(load_tokenizer, files)), None))
    shelves, budget = [], BUDGET
    sources = list(_sources(run / "episodes", order))
    for place, (title, path, wanted) in enumerate(sources):
        shown, cost = sample(path, wanted, viewer, budget // (len(sources) - place))
        budget -= cost
        if shown:
            shelves.append(Shelf(title, path.relative_to(run).as_posix(), shown))
    return shelves


_FULL: dict[Kind, int] = {"success": 2, "failure": 2, "void": 1, "invalid": 1}
_BRIEF: dict[Kind, int] = {"success": 1, "failure": 1, "void": 1, "invalid": 1}


def _sources(folder: Path, order: Sequence[str]) -> Iterator[tuple[str, Path, dict[Kind, int]]]:
    """Title, file and how many episodes of each kind, in the order of the run: what a stage played, then the evaluation
    after it."""
    rest = {path.stem: path for path in _files(folder)}
    for stage in order:
        for path in _few(_files(folder / stage)) if stage in NAMES else ():
            yield f"{named(stage).brief}, step {path.stem.lstrip('0') or '0'}", path, _BRIEF
        if f"eval-{stage}" in rest:
            yield heading(stage), rest.pop(f"eval-{stage}"), _FULL
        if stage == "base" and "demonstrations" in rest:
            yield "Demonstrations", rest.pop("demonstrations"), {"success": 1}
    for path in [*rest.values()][:8]:
        yield path.stem, path, _BRIEF


def _few(files: list[Path], most: int = 4) -> list[Path]:
    """The first, the last, and some between them."""
    if len(files) <= most:
        return files
    return [files[round(i * (len(files) - 1) / (most - 1))] for i in range(most)]


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*.jsonl") if path.is_file())


def sample(
    path: Path, wanted: dict[Kind, int], viewer: Viewer, allowance: int
) -> tuple[list[EpisodeView], int]:
    """The first episodes of each kind in a file, ordered by kind, and about the bytes they take; those that cannot be
    shown within the allowance are passed over. Reads no further than it must."""
    found: list[EpisodeView] = []
    have: Counter[Kind] = Counter()
    spent = passed_over = 0
    for data in read_episodes(path):
        try:
            episode = episode_from_json(data)
            kind = kind_of(episode)
        except WRONG_FIELD:
            continue
        if have[kind] < wanted.get(kind, 0):
            view, cost = viewer.view(episode, allowance - spent)
            if view is None:
                passed_over += 1
            else:
                have[kind] += 1
                spent += cost
                found.append(view)
        if passed_over > MOST_PASSED_OVER or all(have[kind] >= count for kind, count in wanted.items()):
            break
    return sorted(found, key=lambda view: KINDS.index(view.kind)), spent


def load_tokenizer(path: Path) -> Tokenizer | None:
    """The tokenizer, or None where it is missing or broken."""
    if not path.is_file():
        return None
    try:
        return Tokenizer.from_file(str(path))
    except Exception:  # tokenizers raises plain Exception for a broken file
        return None


class Viewer:
    """Turns episodes into views and keeps count of what images and tokens may still take."""

    def __init__(self, tokenizer: Tokenizer | None) -> None:
        self.tokenizer = tokenizer
        self.image_room = IMAGE_BUDGET
        self.token_room = 0

    def view(self, episode: Episode, allowance: int) -> tuple[EpisodeView | None, int]:
        """The episode and about how many bytes it takes; without its tokens, or None, where it takes too many."""
        room = self.image_room
        try:
            view = self._view(episode)
        except WRONG_FIELD:
            self.image_room = room
            return None, 0
        cost = _cost(view)
        if cost > allowance:
            view = replace(view, turns=[_without_tokens(turn) for turn in view.turns])
            cost = _cost(view)
        if cost > allowance:
            self.image_room = room
            return None, 0
        return view, cost

    def _view(self, episode: Episode) -> EpisodeView:
        self.token_room = MOST_EPISODE_TOKENS
        turns = [(number, turn) for number, turn in enumerate(episode.turns, 1)]
        skipped = max(0, len(turns) - MOST_TURNS)
        if skipped:
            turns = turns[: MOST_TURNS // 2] + turns[-MOST_TURNS // 2 :]
        task = episode.task
        facts = [
            f"sample {episode.sample}",
            plural(len(episode.turns), "turn"),
            plural(episode.tokens, "token"),
        ]
        facts += [f"played by {str(episode.policy)[:80]}"] if episode.policy else []
        ending = episode.ending + (f": {episode.reason}" if episode.reason else "")
        name = task.env.removeprefix("gymrl/")
        return EpisodeView(
            kind_of(episode),
            _question(episode)[:160],
            f"{name} · {task.split} {task.index}",
            f"reward {episode.reward:.3g}" if episode.valid else "no reward",
            [ending[:600], *facts],
            [self._turn(number, turn) for number, turn in turns],
            skipped,
            [self._bubble(message) for message in episode.closing],
        )

    def _turn(self, number: int, turn: Turn) -> TurnView:
        facts = [f"reward {float(turn.reward):.3g}"]
        if turn.completion_ids:
            said, shown_ids = len(turn.completion_ids), len(turn.prompt_ids)
            facts.append(f"{plural(said, 'token')} after {plural(shown_ids, 'new prompt token')}")
            least, most = min(turn.versions), max(turn.versions)
            facts.append(f"policy version {least}" + (f" to {most}" if most > least else ""))
        facts.append(f"stop: {str(turn.stop)[:40]}")
        facts += [f"{str(name)[:40]} {float(s):.3g}\u00a0s" for name, s in list(turn.timings.items())[:4]]
        shown = list(zip(turn.completion_ids, turn.logprobs, strict=True))[
            : min(MOST_TOKENS, self.token_room)
        ]
        self.token_room -= len(shown)
        return TurnView(
            number,
            [self._bubble(message) for message in turn.messages],
            self._bubble(Message("assistant", turn.text, tool_calls=turn.tool_calls)),
            facts,
            bool(turn.void),
            turn.segment,
            [self._token(token, logprob) for token, logprob in shown],
            len(turn.completion_ids) - len(shown),
        )

    def _bubble(self, message: Message) -> Bubble:
        text = message.text
        notes = []
        if len(text) > MOST_TEXT:
            notes.append(plural(len(text) - MOST_TEXT, "character"))
            text = text[:MOST_TEXT]
        images = []
        for image in message.images:
            uri = _data_uri(image)
            if uri is None or len(uri) > self.image_room:
                notes.append(f"an image of {plural(len(image), 'byte')}")
            else:
                self.image_room -= len(uri)
                images.append(uri)
        role = message.role if message.name is None else f"{message.role} {message.name}"
        calls = [_call(call) for call in message.tool_calls[:20]]
        note = f"Not shown: {', '.join(notes)}." if notes else ""
        return Bubble(role[:60], list(pieces(text)), calls, images, note)

    def _token(self, token: int, logprob: float) -> Token:
        shade = bisect_left(SURPRISES, -logprob)
        text = str(token)
        if self.tokenizer is not None:
            try:
                decoded = self.tokenizer.decode([token], skip_special_tokens=False)
            except Exception:  # an id that is no id of this tokenizer
                decoded = ""
            text = decoded.replace("\n", "↵\n") if decoded else f"[{token}]"
        return Token(text, shade, f"{token}: {logprob:.3f}")


def pieces(text: str) -> Iterator[Piece]:
    """A message cut at its complete fenced code blocks."""
    end = 0
    for found in _FENCE.finditer(text):
        before = text[end : found.start()].strip("\n")
        if before.strip():
            yield Piece(before)
        yield Piece(found[2].rstrip("\n"), True, found[1])
        end = found.end()
    rest = text[end:].strip("\n")
    if rest.strip() or end == 0:
        yield Piece(rest)


def printable(text: str) -> str:
    """Text that any HTML file can hold: control characters as their pictures, lone surrogates replaced."""
    return text.translate(_UNSEEN)


def plural(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _call(call: ToolCall) -> str:
    arguments = json.dumps(dict(call.arguments), ensure_ascii=False)
    return f"{call.name}({arguments})"[:1000]


def _question(episode: Episode) -> str:
    """What tells this episode from its neighbours: the first line that the environment asks of the user."""
    seen = episode.turns[0].messages if episode.turns else episode.closing
    texts = [m.text for m in seen if m.role == "user"] or [m.text for m in seen] or [episode.reason]
    return next((line.strip() for line in texts[-1].splitlines() if line.strip()), "(no text)")


def _data_uri(image: bytes) -> str | None:
    kinds = ((b"\x89PNG\r\n\x1a\n", "png"), (b"\xff\xd8\xff", "jpeg"))
    kind = next((kind for magic, kind in kinds if image.startswith(magic)), None)
    return kind and f"data:image/{kind};base64,{base64.b64encode(image).decode()}"


def _without_tokens(turn: TurnView) -> TurnView:
    return replace(turn, tokens=[], more_tokens=turn.more_tokens + len(turn.tokens))


def _cost(view: EpisodeView) -> int:
    """About the bytes of a view in the page, images apart."""
    bubbles = [*view.closing, *(b for turn in view.turns for b in (*turn.seen, turn.said))]
    texts: Iterable[str] = [view.title, *view.facts, *(text for turn in view.turns for text in turn.facts)]
    tokens = [token for turn in view.turns for token in turn.tokens]
    parts = [piece.text for bubble in bubbles for piece in bubble.pieces]
    calls = [call for bubble in bubbles for call in bubble.calls]
    size = sum(
        len(str(escape(printable(text))).encode())
        for text in (*texts, *parts, *calls, *(t.text for t in tokens))
    )
    pieces_count = sum(len(bubble.pieces) for bubble in bubbles)
    return size + 45 * len(tokens) + 80 * pieces_count + 300 * len(view.turns) + 150 * len(bubbles) + 700
