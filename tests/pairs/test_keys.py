from array import array

from safetune.pairs import Record, SeenKeys, mark_repeats
from safetune.pairs.keys import clean_key


def test_seen_keys_agree_with_a_set() -> None:
    seen, truth = SeenKeys(), set()
    for number in range(6_000):
        key = f"{number * 7919 % 4001}.png"
        assert seen.add(key) == (key not in truth)
        truth.add(key)
    assert len(seen) == len(truth) == 4001


def test_seen_keys_take_24_bytes_each_at_most() -> None:
    seen = SeenKeys()
    for number in range(50_000):
        seen.add(str(number))
    assert isinstance(seen.slots, array)
    assert seen.slots.itemsize * len(seen.slots) <= 24 * 50_000


def test_only_later_occurrences_are_marked() -> None:
    records = [Record(row, key, "text", b"image") for row, key in enumerate("abab")]
    marked = list(mark_repeats(records))
    assert marked[:2] == records[:2]
    assert marked[2] == Record(2, "a", None, None, "key was there before")
    assert marked[3] == Record(3, "b", None, None, "key was there before")


def test_keys_can_be_written_whatever_the_file_is_called() -> None:
    assert clean_key("größe.png") == "größe.png"
    assert clean_key(b"gr\xf6sse.png".decode("utf-8", "surrogateescape")) == "gr\\udcf6sse.png"
