"""A server of chat completions and of vLLM's own requests that falls silent, and a world to play with it."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from gymrl.envs import Environment, register


class Word(Environment):
    """Say it."""

    max_turns = 1

    def reset(self) -> str:
        return "Say it."

    def step(self, action: Any) -> tuple[Any, ...]:
        return "Right.", 1.0, True


register("test/Word-v0", Word)
GENERATED = {
    "choices": [{"token_ids": [5], "finish_reason": "length", "logprobs": {"content": [{"logprob": 0.0}]},
                 "weight_versions": [{"version": "3", "start": 0, "end": 1}]}],
}  # fmt: skip


class Server:
    """Answers the first requests of each path, as `counts` says (for ever where it does not); after that, it reads what
    is asked and holds the connection without a word. `status`: what chat completions get instead of an answer."""

    def __init__(self, trickles: bool = False, **counts: int) -> None:
        self.counts, self.trickles, self.requests = counts, trickles, []
        self.status, self.usage = 200, None
        self.ends = threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self.answer()

            do_POST = do_GET

            def answer(self) -> None:
                self.rfile.read(int(self.headers.get("content-length", 0)))
                what = self.path.rpartition("/")[2]
                outer.requests.append(what)
                if outer.requests.count(what) > outer.counts.get(what, 10**6):
                    while not outer.ends.wait(0.02):
                        if outer.trickles:
                            self.wfile.write(
                                b"HTTP/1.1 200 OK\r\n" if outer.trickles is True else b"X: y\r\n"
                            )
                            outer.trickles = b"begun"  # type: ignore[assignment]
                    return
                message = {"message": {"content": "it"}, "finish_reason": "stop"}
                value = {
                    "models": {"data": [{"id": "canned", "max_model_len": 64}]},
                    "completions": {"choices": [message], "usage": outer.usage},
                    "generate": GENERATED,
                }.get(what, {})
                data = json.dumps(value).encode()
                self.send_response(outer.status if what == "completions" else 200)
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, format: str, *args: Any) -> None:
                return

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.http.handle_error = lambda *_: None  # type: ignore[method-assign]
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        self.ends.set()
        self.http.shutdown()
        self.http.server_close()
