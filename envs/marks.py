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
