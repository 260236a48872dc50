"""Which slot serves which prompt, and what the free slots still remember."""

from __future__ import annotations

from collections import Counter, OrderedDict


class SlotTable:
    """Hands out slots. A slot that is given back remembers its tokens until it is handed out again."""

    def __init__(self, slots: int) -> None:
        self._blank: list[int] = list(range(slots - 1, -1, -1))
        self._held: OrderedDict[int, tuple[int, ...]] = OrderedDict()
        self._slots_of: dict[tuple[int, ...], list[int]] = {}
        self._lengths: Counter[int] = Counter()

    def __len__(self) -> int:
        """How many slots are free."""
        return len(self._blank) + len(self._held)

    def take(self, prompt: tuple[int, ...]) -> tuple[int, int]:
        """A free slot and how many of the prompt's tokens it remembers: the longest memory that the prompt extends,
        else a blank slot, else the one that was given back first."""
        for length in sorted((n for n in self._lengths if n < len(prompt)), reverse=True):
            found = self._slots_of.get(prompt[:length])
            if found:
                slot = found[-1]
                self._forget(slot)
                return slot, length
        if self._blank:
            return self._blank.pop(), 0
        slot = next(iter(self._held))
        self._forget(slot)
        return slot, 0

    def give(self, slot: int, tokens: tuple[int, ...]) -> None:
        """Give a slot back; it holds the keys and values of `tokens`."""
        if not tokens:
            self._blank.append(slot)
            return
        self._held[slot] = tokens
        self._slots_of.setdefault(tokens, []).append(slot)
        self._lengths[len(tokens)] += 1

    def clear(self) -> None:
        """Forget everything that free slots remember."""
        for slot in list(self._held):
            self._forget(slot)
            self._blank.append(slot)
        self._blank.sort(reverse=True)

    def _forget(self, slot: int) -> None:
        tokens = self._held.pop(slot)
        same = self._slots_of[tokens]
        same.remove(slot)
        if not same:
            del self._slots_of[tokens]
        self._lengths[len(tokens)] -= 1
        if not self._lengths[len(tokens)]:
            del self._lengths[len(tokens)]
