"""A model that wrappers ask: chat completions of an OpenAI-compatible server."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Sequence
from typing import Any
from urllib.parse import urldefrag

import httpx

from gymrl.envs import servers
from gymrl.envs.gym import EnvironmentFault
from gymrl.envs.records import Message

TRIES = 4


class ChatModel:
    """The model at `URL#MODEL`, such as `http://127.0.0.1:8000/v1#critic`; the key is OPENAI_API_KEY's, if set."""

    def __init__(self, url: str, max_tokens: int = 256, timeout: float = 60.0) -> None:
        base, self.name = urldefrag(url)
        if servers.names_user(url):
            raise ValueError(servers.USER)
        servers.headers()
        if not base.startswith(("http://", "https://")) or not self.name:
            raise ValueError(f"{url!r} is no model's address: write http://HOST:PORT/v1#MODEL")
        base = base.rstrip("/")
        self.base = base if httpx.URL(base).path.strip("/") else f"{base}/v1"
        self.max_tokens, self.timeout = max_tokens, timeout

    async def ask(self, messages: Sequence[Message], seed: int) -> str:
        """The model's answer, at temperature 0. Raises EnvironmentFault where there is none after some tries, which
        makes the episode invalid."""
        body = {
            "model": self.name, "messages": [_openai(message) for message in messages], "temperature": 0.0,
            "max_tokens": self.max_tokens, "seed": seed % 2**31,
        }  # fmt: skip
        trouble = ""
        async with httpx.AsyncClient(headers=servers.headers(), timeout=self.timeout) as client:
            for attempt in range(TRIES):
                try:
                    response = await client.post(f"{self.base}/chat/completions", json=body)
                    if response.status_code == 200:
                        return str(response.json()["choices"][0]["message"]["content"] or "").strip()
                    trouble = f"HTTP {response.status_code}: {response.text[:200]}"
                    if response.status_code < 500 and response.status_code not in (408, 409, 429):
                        break
                except (httpx.HTTPError, ValueError, KeyError, TypeError, IndexError) as error:
                    trouble = f"{type(error).__name__}: {error}"
                if attempt + 1 < TRIES:
                    await asyncio.sleep(0.2 * 2**attempt)
        raise EnvironmentFault(
            f"the model {self.base}#{self.name} gave no answer ({trouble}): check its server"
        )


def _openai(message: Message) -> dict[str, Any]:
    if not message.images:
        return {"role": message.role, "content": message.text}
    parts: list[dict[str, Any]] = [{"type": "text", "text": message.text}]
    for image in message.images:
        kind = "jpeg" if image.startswith(b"\xff\xd8") else "png"
        url = f"data:image/{kind};base64,{base64.b64encode(image).decode()}"
        parts.append({"type": "image_url", "image_url": {"url": url}})
    return {"role": message.role, "content": parts}
