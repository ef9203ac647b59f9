"""Which language the lyrics are in, which checkpoint sings it, and which tags tell the model so."""

from __future__ import annotations

import re

from yue_core.errors import RequestError
from yue_core.text.lyrics import BRACKET

CHECKPOINTS = {"en": "en", "zh": "zh", "yue": "zh", "ja": "jp-kr", "ko": "jp-kr"}
LANGUAGE_TAG = {"zh": "Mandarin", "yue": "Cantonese"}  # one checkpoint sings both

KANA = re.compile(r"[\u3041-\u30ff\uff66-\uff9d]")
HANGUL = re.compile(r"[\u1100-\u11ff\u3131-\u318e\uac00-\ud7a3]")
HAN = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003134f]")
LATIN = re.compile(r"[A-Za-z\u00c0-\u024f]")
LATIN_LETTERS_PER_SYLLABLE = 3  # to weigh letters against kana, hangul and han, about one syllable each
KANA_SHARE_OF_JAPANESE = 0.1  # of kana and han; Chinese lyrics use kana as an ornament at most


def detect_language(lyrics: str) -> str:
    """The language with the most syllables: "ja", "ko", "zh", or "en" for all others. Labels do not count."""
    sung = BRACKET.sub("", lyrics)
    kana, hangul, han, latin = (len(script.findall(sung)) for script in (KANA, HANGUL, HAN, LATIN))
    if kana + hangul + han <= latin / LATIN_LETTERS_PER_SYLLABLE:
        return "en"
    if hangul >= kana + han:
        return "ko"
    return "ja" if kana >= KANA_SHARE_OF_JAPANESE * (kana + han) else "zh"


def checkpoint_language(language: str) -> str:
    """The published stage 1 family for a language: "en", "zh" or "jp-kr".

    Raises RequestError for a language that no checkpoint sings ("auto" is resolved by `detect_language`).
    """
    if language not in CHECKPOINTS:
        raise RequestError(f"No checkpoint sings {language!r}: choose one of {', '.join(CHECKPOINTS)}.")
    return CHECKPOINTS[language]


def language_tags(language: str, genre_tags: str) -> str:
    """The tags, with Mandarin or Cantonese added for "zh" and "yue" when the user gave neither."""
    tag = LANGUAGE_TAG.get(language)
    given = genre_tags.casefold()
    if tag is None or any(name.casefold() in given for name in LANGUAGE_TAG.values()):
        return genre_tags
    return f"{genre_tags}{', ' if ',' in genre_tags else ' '}{tag}"
