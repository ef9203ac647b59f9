"""Language of lyrics, its checkpoint and its tag."""

import pytest

from yue_core.errors import RequestError
from yue_core.text.language import checkpoint_language, detect_language, language_tags


@pytest.mark.parametrize(
    ("lyrics", "language"),
    [
        ("[verse]\nHold the lantern low", "en"),
        ("[verse]\nPerché no, déjà vu", "en"),
        ("[verse]\n", "en"),
        ("[主歌]\n", "en"),
        ("[verse]\n雨落屋檐\n我把伞借给昨天", "zh"),
        ("[verse one of two]\n雨落", "zh"),
        ("[verse]\n我哋今晚一齊唱歌", "zh"),
        ("[verse]\n夜空に咲いた花火の音", "ja"),
        ("[verse]\nカラオケでうたう", "ja"),
        ("[verse]\n오늘 밤 우리 노래해", "ko"),
        ("[verse]\n오늘 밤 우리 노래해 tonight baby", "ko"),
        ("[verse]\n今夜 君の歌を歌う baby hold me tonight", "ja"),
        ("[verse]\n雨落屋檐の我把伞借给昨天慢慢走", "zh"),
        ("[chorus]\nHold the lantern, hold it low\nEvery river learns to go\n愛してる", "en"),
    ],
)
def test_detects_the_language_most_syllables_are_in(lyrics: str, language: str) -> None:
    assert detect_language(lyrics) == language


def test_detects_in_linear_time() -> None:
    assert detect_language("[" * 1_000_000 + "雨") == "zh"


@pytest.mark.parametrize(
    ("language", "checkpoint"),
    [("en", "en"), ("zh", "zh"), ("yue", "zh"), ("ja", "jp-kr"), ("ko", "jp-kr")],
)
def test_checkpoint_of_a_language(language: str, checkpoint: str) -> None:
    assert checkpoint_language(language) == checkpoint


@pytest.mark.parametrize("language", ["auto", "fr", ""])
def test_no_checkpoint_for_other_languages(language: str) -> None:
    with pytest.raises(RequestError, match="choose one of en, zh, yue, ja, ko"):
        checkpoint_language(language)


@pytest.mark.parametrize(
    ("language", "given", "result"),
    [
        ("en", "pop piano", "pop piano"),
        ("ja", "pop piano", "pop piano"),
        ("zh", "pop piano", "pop piano Mandarin"),
        ("yue", "pop piano", "pop piano Cantonese"),
        ("zh", "pop, piano", "pop, piano, Mandarin"),
        ("zh", "pop cantonese piano", "pop cantonese piano"),
        ("yue", "MANDARIN pop", "MANDARIN pop"),
    ],
)
def test_chinese_gets_its_language_tag_once(language: str, given: str, result: str) -> None:
    assert language_tags(language, given) == result
    assert language_tags(language, result) == result
