"""What an environment reads out of a text: code blocks and final answers."""

from __future__ import annotations

import re
from collections.abc import Iterator

_CODE_BLOCK = re.compile(r"```[ \t]*([\w+-]*)[ \t]*\n(.*?)```", re.DOTALL)


def code_blocks(text: str, languages: tuple[str, ...] = ("", "python", "py", "python3")) -> list[str]:
    """The bodies of the complete fenced code blocks in one of `languages` ('' is a bare fence), in order."""
    return [body for language, body in _CODE_BLOCK.findall(text) if language.lower() in languages]


def answer(text: str) -> str | None:
    """The content of the last complete `<answer>...</answer>`, stripped; None where there is none."""
    content = None
    for start, end in spans(text, "<answer>", "</answer>"):
        content = text[start + len("<answer>") : end - len("</answer>")].strip()
    return content


def spans(text: str, opening: str, closing: str) -> Iterator[tuple[int, int]]:
    """Where the parts from an opening mark to the next closing one begin and end, marks included. Linear in the text's
    length, which a regular expression is not where nothing is ever closed."""
    at = 0
    while (start := text.find(opening, at)) >= 0:
        end = text.find(closing, start + len(opening))
        if end < 0:
            return
        at = end + len(closing)
        yield start, at


def boxed(text: str) -> str | None:
    r"""The content of the last complete `\boxed{...}` outside of code blocks, braces balanced, stripped; None where
    there is none or it is empty."""
    text = _CODE_BLOCK.sub("", text)
    start = len(text)
    for _ in range(20):  # one that is not closed may follow one that is
        start = text.rfind("\\boxed{", 0, start)
        if start < 0:
            return None
        depth, begin = 0, start + len("\\boxed")
        for place in range(begin, min(len(text), begin + 10_000)):
            depth += {"{": 1, "}": -1}.get(text[place], 0)
            if depth == 0:
                return text[begin + 1 : place].strip() or None
    return None
