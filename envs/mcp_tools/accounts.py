"""An example of an MCP server: accounts and transfers between them, in memory. It needs nothing but Python.

`python accounts.py` speaks the protocol over stdin and stdout, one JSON message a line. It is written without the `mcp`
package, whose import takes two seconds, so that every episode can have a process of its own; servers of your own are
written more easily with `mcp.server.MCPServer`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

Schema = dict[str, Any]
TEXT: Schema = {"type": "string"}
WHOLE: Schema = {"type": "integer"}
ACCOUNTS: dict[str, int] = {}


class Refused(Exception):
    """A call that the bank does not carry out; the agent is told why."""


def open_bank(balances: dict[str, int]) -> str:
    """Forget all accounts and open these: what a task begins with."""
    ACCOUNTS.clear()
    ACCOUNTS.update(balances)
    return "opened"


def list_owners() -> str:
    return ", ".join(sorted(ACCOUNTS)) or "nobody"


def get_balance(owner: str) -> str:
    if owner not in ACCOUNTS:
        raise Refused(f"{owner} has no account; list_owners names those who have")
    return str(ACCOUNTS[owner])


def transfer(sender: str, receiver: str, amount: int) -> str:
    for owner in (sender, receiver):
        get_balance(owner)
    if amount <= 0 or sender == receiver:
        raise Refused("a transfer moves more than 0 from one owner to another")
    if ACCOUNTS[sender] < amount:
        raise Refused(f"{sender} has {ACCOUNTS[sender]}, less than {amount}")
    ACCOUNTS[sender] -= amount
    ACCOUNTS[receiver] += amount
    return f"moved {amount} from {sender} to {receiver}"


def all_balances() -> str:
    return json.dumps(ACCOUNTS, sort_keys=True)


TOOLS: dict[str, tuple[Callable[..., str], str, dict[str, Schema]]] = {
    "open_bank": (open_bank, "Forget all accounts and open these.", {"balances": {"type": "object"}}),
    "list_owners": (list_owners, "The owners of all accounts.", {}),
    "get_balance": (get_balance, "The balance of an owner's account.", {"owner": TEXT}),
    "transfer": (
        transfer,
        "Move money between accounts.",
        {"sender": TEXT, "receiver": TEXT, "amount": WHOLE},
    ),
    "all_balances": (all_balances, "Every account's balance, as JSON.", {}),
}
KINDS = {"string": str, "integer": int, "object": dict}


def schema(properties: dict[str, Schema]) -> Schema:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def call(params: dict[str, Any]) -> str:
    name, arguments = params.get("name"), params.get("arguments") or {}
    if name not in TOOLS:
        raise Refused(f"there is no tool {str(name)[:100]!r}")
    function, _, properties = TOOLS[name]
    if set(arguments) != set(properties):
        raise Refused(f"{name} takes {', '.join(properties) or 'no arguments'}")
    for key, wanted in properties.items():
        if type(arguments[key]) is not KINDS[wanted["type"]]:
            raise Refused(f"{key} is of type {wanted['type']}")
    return function(**arguments)


def answer(method: str, params: dict[str, Any]) -> dict[str, Any]:
    """The result of a request. Raises LookupError for a method that there is not."""
    if method == "initialize":
        info = {"name": "accounts", "version": "1"}
        version = params.get("protocolVersion", "2025-06-18")
        return {"protocolVersion": version, "capabilities": {"tools": {}}, "serverInfo": info}
    if method == "ping":
        return {}
    if method == "tools/list":
        rows = [(name, text, schema(properties)) for name, (_, text, properties) in TOOLS.items()]
        return {
            "tools": [{"name": name, "description": text, "inputSchema": form} for name, text, form in rows]
        }
    if method == "tools/call":
        try:
            text, failed = call(params), False
        except Refused as refused:
            text, failed = str(refused), True
        return {"content": [{"type": "text", "text": text}], "isError": failed}
    raise LookupError(method)


def main() -> None:
    for line in sys.stdin.buffer:
        request = json.loads(line)
        if "id" not in request:  # a notification
            continue
        reply: dict[str, Any] = {"jsonrpc": "2.0", "id": request["id"]}
        try:
            reply["result"] = answer(request["method"], request.get("params") or {})
        except LookupError as unknown:
            reply["error"] = {"code": -32601, "message": f"there is no method {unknown}"}
        sys.stdout.write(json.dumps(reply) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
