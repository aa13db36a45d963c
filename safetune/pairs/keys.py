"""Keys of rows: fit for any file, and each once."""

from array import array
from collections.abc import Iterable, Iterator
from dataclasses import replace
from hashlib import blake2b

from safetune.pairs.records import Record

REPEATED = "key was there before"


def clean_key(key: str) -> str:
    """The key with what UTF-8 cannot hold (bytes of an odd file name) spelled out."""
    return key.encode("utf-8", "backslashreplace").decode()


def listed(names: Iterable[str], shown: int = 8) -> str:
    """The first names in order, and how many more there are."""
    ordered = sorted(map(clean_key, names))
    more = f" and {len(ordered) - shown} more" if len(ordered) > shown else ""
    return (", ".join(ordered[:shown]) + more) or "nothing"


class SeenKeys:
    """A set of keys that only grows, 12 to 24 bytes each however long they are.

    Keys count by 64 bits of BLAKE2b, the same in every process; of 10 million keys two collide with a chance
    of 3 in a million. Open addressing in one array: a set of Python integers takes six times as much.
    """

    def __init__(self) -> None:
        self.slots = array("Q", bytes(8 * 1024))
        self.count = 0

    def __len__(self) -> int:
        return self.count

    def add(self, key: str) -> bool:
        """Take up a key; False when it was there already."""
        digest = blake2b(clean_key(key).encode(), digest_size=8).digest()
        value = int.from_bytes(digest, "little") or 1  # 0 marks a free slot
        if not self._put(value):
            return False
        self.count += 1
        if 3 * self.count > 2 * len(self.slots):
            self._grow()
        return True

    def _put(self, value: int) -> bool:
        mask = len(self.slots) - 1
        slot = value & mask
        while self.slots[slot]:
            if self.slots[slot] == value:
                return False
            slot = (slot + 1) & mask
        self.slots[slot] = value
        return True

    def _grow(self) -> None:
        old = self.slots
        self.slots = array("Q", bytes(16 * len(old)))
        for value in old:
            if value:
                self._put(value)


def mark_repeats(records: Iterable[Record]) -> Iterator[Record]:
    """The same records, with a defect on those whose key an earlier one has.

    Every process that reads all records marks the same ones. The first one counts even where it turns out to
    be damaged later: which row is kept depends on order alone.
    """
    seen = SeenKeys()
    for record in records:
        if seen.add(record.key):
            yield record
        else:
            yield replace(record, text=None, image=None, defect=REPEATED)
