"""Words to sing, their syllables and vowels, and the tags that mean something in the sound."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from typing import Any

import numpy as np

VOWELS = "aeiou"

# Syllables in the manner of several languages; words are made of them.
SYLLABLES = {
    "open": "la mi so na re du ka ti mo ne va lu si do pe ra fi no be tu ha wi yo zu le ma ri sa ni ko",
    "mandarin": "ni hao wo men ai xin yue liang feng hua shan shui tian kong deng lai qu meng yun xing",
    "japanese": "か き く け こ さ し す せ そ た ち つ て と な に ぬ ね の は ひ ふ へ ほ ま み む め も ら り る れ ろ",  # noqa: E501 (wide letters)
    "korean": "가 나 다 라 마 바 사 아 자 하 고 노 도 로 모 보 소 오 구 누 두 우 기 니 리 미 시 이 네 세 게 에",
}
ENGLISH = """
    a and are away baby back bay be blue boat bring bus by call calm city cold come coming count dance dark day deep
    down dream drift drive every eyes fall far feel find fire fly for from gold gone good hand heart here high hold
    home hope hum in into is it keep kiss know last leave left let letters light like little lonely long look lost love
    low make me mind moon more morning my name near never new night no now of off on one open our out over paper place
    play quiet rain red remember river road round run sea see send shadow shine shore show side sing sky sleep slow
    smile so soft somebody song soul sound star stay steel still stone stop story street summer sun sweet take tell
    that the there they this through time to today tomorrow train turn two under up voice wait walk wall water way we
    whisper who wild wind window winter with word world you your
"""

TEMPO = {"slow": 9, "medium": 7, "fast": 5}  # frames per sixteenth note: 83, 107, 150 bpm
MOODS = {
    "major": ["uplifting", "happy", "bright", "inspiring", "hopeful", "energetic"],
    "minor": ["sad", "dark", "melancholic", "lonely", "calm", "mysterious"],
}
INSTRUMENTS = {
    "piano": ["piano", "keys"],
    "guitar": ["guitar", "harp"],
    "strings": ["strings", "synth", "organ", "pads"],
}
STYLES = {
    "backbeat": ["pop", "rock", "indie"],
    "four": ["electronic", "dance", "disco"],
    "light": ["folk", "ballad", "acoustic"],
}
VOICES = ("male", "female")
TIMBRES = {"bright": ["bright vocal", "clear vocal"], "soft": ["airy vocal", "soft vocal", "warm vocal"]}
TAGS: Mapping[str, Mapping[Any, list[str]]] = {  # field of `score.Style`: its values, and the words that ask for each
    "sixteenth": {frames: [word] for word, frames in TEMPO.items()},
    "mode": MOODS,
    "instrument": INSTRUMENTS,
    "drums": STYLES,
    "voice": {voice: [voice] for voice in VOICES},
    "timbre": TIMBRES,
}

WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*|\d")
GROUP = re.compile(r"[aeiouy]+")
KANA_ROWS = {"A": "a", "I": "i", "U": "u", "E": "e", "O": "o", "N": "u"}  # last letter of a kana's Unicode name
HANGUL_VOWELS = "aeaeoeoeoaeioueiiuui"  # nearest of five, for each of the 21 medial vowels but the last
FRICATIVES, PLOSIVES = "sfzcxh", "ptkbdgqj"


def syllables(text: str) -> list[tuple[str, str]]:
    """What is sung of a line: (kind of onset, vowel) per syllable; onsets are "fricative", "plosive" or "plain"."""
    found: list[tuple[str, str]] = []
    for word in WORD.findall(text.casefold()):
        if word.isascii() or unicodedata.name(word[0], "").startswith("LATIN"):
            found += _latin(word)
        else:
            found += [_character(character) for character in word]
    return found


def _latin(word: str) -> list[tuple[str, str]]:
    plain = unicodedata.normalize("NFD", word)
    plain = "".join(c for c in plain if "a" <= c <= "z")
    groups = list(GROUP.finditer(plain))
    if len(groups) > 1 and groups[-1][0] == "e" and groups[-1].end() == len(plain):
        groups.pop()  # a silent e
    if not groups:
        return [(_onset(plain[:1]), "e")]
    result = []
    start = 0
    for group in groups:
        first = "i" if group[0][0] == "y" and len(group[0]) == 1 else group[0].lstrip("y")[:1] or "i"
        result.append((_onset(plain[start : group.start()][-1:]), first))
        start = group.end()
    return result


def _character(character: str) -> tuple[str, str]:
    """One written syllable: a kana, a hangul block, or any other sign (its vowel then follows its number)."""
    name = unicodedata.name(character, "")
    if "KATAKANA" in name or "HIRAGANA" in name:
        return _onset(name.split()[-1][:1].lower()), KANA_ROWS.get(name[-1], "a")
    code = ord(character) - 0xAC00
    if 0 <= code < 11172:
        return ("plosive" if code // 588 in (0, 1, 3, 4, 7, 8) else "plain"), (HANGUL_VOWELS + "i")[code % 588 // 28]
    return "plain", VOWELS[ord(character) % 5]


def _onset(letter: str) -> str:
    return "fricative" if letter and letter in FRICATIVES else "plosive" if letter and letter in PLOSIVES else "plain"


def line(rng: np.random.Generator, language: str, size: int) -> str:
    """A line of about `size` syllables; languages are those of `SYLLABLES` and "english"."""
    words: list[str] = []
    count = 0
    while count < size:
        if language == "english":
            word = str(rng.choice(ENGLISH.split()))
        else:
            joint = " " if language == "mandarin" else ""
            word = joint.join(rng.choice(SYLLABLES[language].split(), rng.integers(1, 4)))
        words.append(word)
        count += max(1, len(syllables(word)))
    if len(words) > 3 and rng.random() < 0.3:
        words[len(words) // 2] += ","
    text = ("" if language == "japanese" else " ").join(words)
    return text[:1].upper() + text[1:]
