"""What an environment reads out of a text: code blocks and final answers."""

from __future__ import annotations

import re

_CODE_BLOCK = re.compile(r"```[ \t]*([\w+-]*)[ \t]*\n(.*?)```", re.DOTALL)
_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)


def code_blocks(text: str, languages: tuple[str, ...] = ("", "python", "py", "python3")) -> list[str]:
    """The bodies of the complete fenced code blocks in one of `languages` ('' is a bare fence), in order."""
    return [body for language, body in _CODE_BLOCK.findall(text) if language.lower() in languages]


def answer(text: str) -> str | None:
    """The content of the last complete `<answer>...</answer>`, stripped; None where there is none."""
    found = _ANSWER.findall(text)
    return found[-1].strip() if found else None


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
