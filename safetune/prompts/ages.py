"""The filter that drops every row that names an age, or a word for a minor, in a sexual prompt.

It is deliberately too strict: a false alarm costs one row, a miss is not acceptable.
"""

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass

from safetune.prompts.age_words import (
    BOTH_PARTS,
    BOTH_WORDS,
    CATEGORY_WORDS,
    INNOCUOUS,
    MINOR_PARTS,
    MINOR_PHRASES,
    MINOR_SIGNS,
    MINOR_WORDS,
    NUMBERS,
    SEXUAL_PARTS,
    SEXUAL_PHRASES,
    SEXUAL_SIGNS,
    SEXUAL_WORDS,
)

# Letters that look Latin (Cyrillic, Greek, small capitals), and letters that Unicode does not decompose.
LOOKALIKES = str.maketrans(
    "аеіјкмнорстухѕԁɡ" + "αεικορτυ" + "ᴀʙᴄᴅᴇꜰɢʜɪᴊᴋʟᴍɴᴏᴘʀꜱᴛᴜᴠᴡʏᴢ" + "ıøłæ",
    "aeijkmhopctyxsdg" + "aeikoptu" + "abcdefghijklmnoprstuvwyz" + "iola",
)
# Digits and signs that stand for letters; 1, ! and | can be an i or an l.
DISGUISES = tuple(
    str.maketrans("0134578@$!|+€69", letters) for letters in ("oieastbasiitegg", "oleastbaslltegg")
)
# Numbers that are no ages: resolutions, lenses, weights, centuries, aspect ratios, options of generators.
TECHNICAL = re.compile(
    r"\b\d{1,2}\s?k\b|\b(?:\d{1,3}|\d \d)\s?mm\b|\bf\s?/?\s?\d+\.\s?\d+|:\s?[0-2]\.\d+\s*\)"
    r"|\b\d+\s?(?:st|nd|rd|th)[\s-]centur\w+"
    r"|\b(?:16:9|9:16|21:9|16:10|4:3|3:4|3:2|2:3|4:5|5:4)\b"
    r"|--(?:ar|aspect|chaos|iw|no|q|quality|seed|stylize|s|v|version)\s+[\d:.]+"
)
PERSON = "woman|man|lady|female|male|person|model|actress|actor|human|body"
# Matched on the canonical form: words and whole numbers, one space between them, spelled numbers as digits.
AGES = re.compile(
    rf"""
    \b(?:years?|yrs?|y|months?|weeks?|days?|summers|winters)\ (?:olds?|of\ age)\b | \by(?:ea)?rs?olds?\b
    | \b\d+\ (?:years?|yrs?|yo|yos|y|months?|mo|weeks?|ans|anos|jahre?n?|jahrig\w*)\b
    | \b(?:age|aged|ages)(?:\ \w+){{0,2}}\ \d+\b | \b\d+(?:\ \w+)?\ (?:age|aged|ages)\b
    | \b(?:under|below|over|above|than|only|just|barely|almost|nearly|about|around|approximately|roughly
         |turn|turns|turned|turning|looks?|looking|like|not|yet|at|is|was|be|being|u|sweet|minus)
      \ (?:\w+\ )?(?:[2-9]|1\d|2[01])\b
    | \b(?:[89]|1\d)\ [fmgbw]\b | \b[fmgbw]\ (?:[89]|1\d)\b
    | \b\d+(?:\ \w+){{0,3}}\ birthday\b | \bbirthday(?:\ \w+){{0,3}}\ \d+\b
    | \bborn(?:\ \w+){{0,2}}\ \d+\b
    | \bin\ (?:his|her|their)(?:\ \w+)?\ (?:\d+\ s|\w+ties)\b
    | \b\d+(?:\ \w+)?\ grades?\b | \bgrades?\ \d+\b
    | \b[2-9](?:\ \w+)?\ (?:{PERSON})\b | \b(?:{PERSON})\ (?:\w+\ )?[2-9]\b
    | \b[6-9](?:\ \w+)?\ (?:women|men|ladies|females|males|people|models)\b
    | \b1\ ?[0-7]\b
    """,
    flags=re.VERBOSE,
)


def names_age_in_sexual_prompt(text: str, category: str = "") -> bool:
    """True when the row has to be dropped: sexual by category or text, and an age or a minor in the text.

    `category` may be a comma-separated list. Case, accents, look-alike letters, punctuation inside words,
    disguised letters and spelled-out numbers do not hide a word.
    """
    reading = read(text)
    if BOTH.found_in(reading):
        return True
    return (SEXUAL.found_in(reading) or is_sexual_category(category)) and names_age(reading)


def is_sexual_category(category: str) -> bool:
    """True for any spelling of a sexual category: sexual, Nudity, NSFW, adult content, ..."""
    reading = read(category)
    return SEXUAL.found_in(reading) or not CATEGORY_WORDS.isdisjoint(reading.words)


@dataclass(frozen=True)
class Reading:
    """A text in the forms that the lists are compared with."""

    plain: str
    """Normalised characters, punctuation kept."""
    canonical: tuple[str, ...]
    """Words and numbers with one space between them: as written, and with disguised letters restored."""
    words: frozenset[str]
    """Words, also as they read without punctuation, disguises and repeated letters."""
    joined: frozenset[str]
    """Neighbouring words written together: only a whole listed word counts."""
    spelled: tuple[str, ...]
    """Runs of single letters, written together."""
    masked: tuple[re.Pattern[str], ...]
    """Words with letters masked by signs, as patterns."""


class WordList:
    """Words, parts of words, phrases and signs that are looked for in every form of a text."""

    def __init__(
        self,
        words: frozenset[str],
        parts: tuple[str, ...] = (),
        phrases: tuple[str, ...] = (),
        signs: tuple[str, ...] = (),
    ):
        self.words, self.parts = words, parts
        self.listed = words.union(parts)
        self.phrases = tuple(f" {phrase} " for phrase in phrases)
        self.signs = tuple(normalise(sign) for sign in signs)

    def found_in(self, reading: Reading) -> bool:
        return (
            not self.words.isdisjoint(reading.words)
            or not self.listed.isdisjoint(reading.joined)
            or any(part in word for word in reading.words for part in self.parts)
            or any(phrase in f" {form} " for form in reading.canonical for phrase in self.phrases)
            or any(sign in reading.plain for sign in self.signs)
            or any(word in run for run in reading.spelled for word in self.listed)
            or any(pattern.fullmatch(word) for pattern in reading.masked for word in self.listed)
        )


def names_age(reading: Reading) -> bool:
    """True when the text holds a word for a minor or names an age, any age."""
    return (
        MINOR.found_in(reading)
        or any(AGES.search(form) for form in reading.canonical)
        or re.search(r"<\s*\d", reading.plain) is not None
    )


def read(text: str) -> Reading:
    """Bring a text into the forms that the lists are compared with."""
    plain = normalise(text)
    letters = re.findall(r"[a-z]+", plain)
    words = {*letters, *undisguised(plain)} - INNOCUOUS
    for word in tuple(words):
        words |= {re.sub(r"(.)\1{2,}", r"\1\1", word), re.sub(r"(.)\1+", r"\1", word)}
    runs = re.findall(r"\b[a-z](?: [a-z]\b){2,}", " ".join(letters))
    masks = re.findall(r"[a-z]+(?:[*#_.'-]+[a-z]+)+|[a-z]{2,}[*#]+", plain)
    numbers = TECHNICAL.sub(" , ", plain)
    restored = (" ".join(restore(chunk, disguise) for chunk in numbers.split()) for disguise in DISGUISES)
    return Reading(
        plain=plain,
        canonical=tuple(dict.fromkeys(canonical(form) for form in (numbers, *restored))),
        words=frozenset(words - INNOCUOUS),
        joined=frozenset(neighbours(letters)),
        spelled=tuple(run.replace(" ", "") for run in runs),
        masked=tuple(re.compile(re.sub(r"[^a-z]", "[a-z]", mask)) for mask in masks),
    )


def normalise(text: str) -> str:
    """Small letters without accents, invisible characters, look-alikes and foreign digits."""
    decomposed = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", text).casefold())
    kept = (character for character in decomposed if unicodedata.category(character) not in ("Mn", "Cf"))
    plain = "".join(str(unicodedata.decimal(c)) if c.isdecimal() else c for c in kept)
    return plain.translate(LOOKALIKES)


def canonical(plain: str) -> str:
    """Words and whole numbers with one space between them; spelled numbers become digits."""
    return " ".join(NUMBERS.get(word, word) for word in re.findall(r"[a-z]+|[0-9]+", plain))


def restore(chunk: str, disguise: dict[int, int]) -> str:
    """A chunk that mixes letters with signs or digits, those read as letters; any other as it is."""
    return chunk.translate(disguise) if re.search(r"[a-z]", chunk) else chunk


def undisguised(plain: str) -> Iterator[str]:
    """Each chunk between spaces without its punctuation, as it stands and with signs read as letters."""
    for chunk in plain.split():
        yield "".join(re.findall(r"[a-z]", chunk))
        for disguise in DISGUISES:
            letters = re.findall(r"[a-z]+", restore(chunk, disguise))
            yield from letters
            yield "".join(letters)


def neighbours(letters: list[str]) -> Iterator[str]:
    """Two or three neighbouring words written together, and up to eight short ones."""
    for start in range(len(letters)):
        for size in range(2, 9):
            words = letters[start : start + size]
            if len(words) == size and (size <= 3 or max(map(len, words)) <= 3):
                yield "".join(words)


MINOR = WordList(MINOR_WORDS, MINOR_PARTS, MINOR_PHRASES, MINOR_SIGNS)
SEXUAL = WordList(SEXUAL_WORDS, SEXUAL_PARTS, SEXUAL_PHRASES, SEXUAL_SIGNS)
BOTH = WordList(BOTH_WORDS, BOTH_PARTS)
