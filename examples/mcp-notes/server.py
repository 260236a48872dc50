"""A server of notes, as anyone would write one with the `mcp` package: `python server.py` serves it over stdio."""

from mcp.server import MCPServer

# Below CRITICAL every error of a tool is logged with a coloured traceback, which takes longer than all else.
server = MCPServer("notes", instructions="Notes have a title, a text and tags.", log_level="CRITICAL")
notes: dict[str, dict[str, object]] = {}


@server.tool()
def write_note(title: str, text: str, tags: list[str] = []) -> str:  # noqa: B006 - shown in the tool's schema
    """Write a note, over the one of that title if there is one."""
    notes[title] = {"text": text, "tags": sorted(tags)}
    return f"wrote {title!r}"


@server.tool()
def read_note(title: str) -> str:
    """Read a note's text."""
    if title not in notes:
        raise ValueError(f"there is no note {title!r}")
    return str(notes[title]["text"])


@server.tool()
def find_notes(tag: str) -> list[str]:
    """The titles of the notes that have a tag."""
    return sorted(title for title, note in notes.items() if tag in note["tags"])  # type: ignore[operator]


@server.tool()
def delete_note(title: str) -> str:
    """Delete a note."""
    if notes.pop(title, None) is None:
        raise ValueError(f"there is no note {title!r}")
    return f"deleted {title!r}"


@server.tool()
def clear() -> str:
    """Delete all notes."""
    notes.clear()
    return "cleared"


if __name__ == "__main__":
    server.run()
