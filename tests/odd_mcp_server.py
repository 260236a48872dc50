"""The example server `accounts` with tools that go wrong: a program, started by tests as a server of its own.

`odd_mcp_server.py FOLDER [TROUBLE]`: FOLDER is where accounts.py lies.
"""

import os
import sys
import time

sys.path.insert(0, sys.argv[1])
import accounts

trouble = sys.argv[2] if len(sys.argv) > 2 else ""
print("odd server is here", file=sys.stderr, flush=True)
if trouble == "exits":
    sys.exit(3)
if trouble == "silent":
    time.sleep(600)
if trouble == "stubborn":  # goes by a kill alone
    import signal

    signal.signal(signal.SIGTERM, signal.SIG_IGN)

PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
WHOLE = {"type": "integer"}


def die():
    print("I die of it", file=sys.stderr, flush=True)
    os._exit(7)


def nap(milliseconds):
    time.sleep(milliseconds / 1000)
    return "slept"


accounts.TOOLS.update({
    "die": (die, "Die.", {}),
    "nap": (nap, "Sleep.", {"milliseconds": WHOLE}),
    "long": (lambda: "x" * 100_000, "Much text.", {}),
    "pid": (lambda: str(os.getpid()), "The process.", {}),
    "file": (lambda: str(os.listdir(sys.argv[3])) + sys.argv[3], "What lies in the folder.", {}),
    "environ": (lambda: os.environ.get("COLOUR", "none"), "A variable.", {}),
})  # fmt: skip
plain = accounts.answer


def answer(method, params):
    if method == "tools/call" and params.get("name") == "look":
        image = {"type": "image", "mimeType": "image/png", "data": PNG}
        sound = {"type": "audio", "mimeType": "audio/wav", "data": "AAAA"}
        return {"content": [{"type": "text", "text": "see"}, image, sound]}
    if method == "tools/call" and params.get("name") == "data":
        return {"content": [], "structuredContent": {"rows": [1, 2.0, True]}}
    if method == "tools/call" and params.get("name") == "nonsense":
        return {"content": "this is no list"}
    if method == "tools/call" and params.get("name") == "refuse":
        raise LookupError("refuse")  # an error of the protocol, not of the tool
    if method == "tools/list":
        listed = plain(method, params)["tools"]
        bare = [
            {"name": name, "inputSchema": {"type": "object"}}
            for name in ("look", "data", "nonsense", "refuse")
        ]
        if "cursor" not in params:
            return {"tools": listed, "nextCursor": "more"}
        return {"tools": bare, **({"nextCursor": "more"} if trouble == "endless" else {})}
    return plain(method, params)


accounts.answer = answer
accounts.main()
if trouble == "stubborn":
    time.sleep(600)
