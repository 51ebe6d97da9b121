"""Who has to be looked at when, to the second, at a price that does not grow with how many there are."""

from __future__ import annotations

import heapq
import math
from typing import Final, Generic, TypeVar

import attrs

EMPTY_LIMIT: Final = 1000  # seconds far away that everybody has left again

Item = TypeVar("Item")


@attrs.define(eq=False)
class Deadlines(Generic[Item]):
    """Items by the whole second after their deadline: never early, at most a second late."""

    _seconds: list[int] = attrs.Factory(list)  # a heap of the keys of _items
    _items: dict[int, set[Item]] = attrs.Factory(dict)
    _empty: int = 0  # at most so many seconds have no item any more

    def add(self, item: Item, deadline: float) -> int:
        """Remember *item*; return the second to discard it by."""
        second = math.ceil(deadline)
        items = self._items.get(second)
        if items is None:
            items = self._items[second] = set()
            heapq.heappush(self._seconds, second)
        items.add(item)
        return second

    def discard(self, item: Item, second: int) -> None:
        """Forget *item*, which was added for *second*; no harm if it is gone."""
        items = self._items.get(second)
        if items is None:
            return
        items.discard(item)
        if not items:
            self._empty += 1
            if self._empty > EMPTY_LIMIT and self._empty * 2 > len(self._seconds):
                self._items = {second: items for second, items in self._items.items() if items}
                self._seconds = list(self._items)
                heapq.heapify(self._seconds)
                self._empty = 0

    def next(self) -> int | None:
        """Return the first second at which somebody is due."""
        while self._seconds and not self._items[self._seconds[0]]:
            del self._items[heapq.heappop(self._seconds)]
        return self._seconds[0] if self._seconds else None

    def due(self, now: float) -> list[Item]:
        """Take out everybody who is due."""
        found: list[Item] = []
        while (second := self.next()) is not None and second <= now:
            heapq.heappop(self._seconds)
            found += self._items.pop(second)
        return found
