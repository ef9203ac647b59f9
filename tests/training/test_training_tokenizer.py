"""The demo profile's own text pieces."""

from __future__ import annotations

from pathlib import Path

import pytest

from training.score import LABELS
from training.tokenizer import PIECES, make_tokenizer
from training.words import TAGS
from yue_core.text.tokenizer import Tokenizer
from yue_core.weights.manifest import TINY


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "tokenizer.model"
    make_tokenizer(path)
    return path


def test_a_word_of_a_tag_is_one_piece_wherever_it_stands(made: Path) -> None:
    tokenizer = Tokenizer(made)
    words = {part for values in TAGS.values() for words in values.values() for word in words for part in word.split()}
    pieces = {word: tokenizer.encode(word) for word in words}
    assert all(len(ids) == 1 for ids in pieces.values())
    assert len({ids[0] for ids in pieces.values()}) == len(words)
    for joint in (" ", ", "):
        line = tokenizer.encode(f"[Genre] {joint.join(sorted(words))}\n")
        assert [i for i in line if [i] in pieces.values()] == [pieces[word][0] for word in sorted(words)]


def test_a_label_is_one_piece_between_its_brackets(made: Path) -> None:
    tokenizer = Tokenizer(made)
    pieces = [tokenizer.encode(f"[start_of_segment][{label}]\nLa la")[-7:] for label in LABELS]
    inside = [tokenizer.encode(f"[{label}]")[1:-1] for label in LABELS]
    assert all(len(ids) == 1 for ids in inside)
    assert len({ids[0] for ids in inside}) == len(LABELS)
    for ids, (piece,) in zip(pieces, inside, strict=True):
        assert piece in ids


def test_letters_it_has_never_seen_are_bytes(made: Path) -> None:
    tokenizer = Tokenizer(made)
    seen, unseen = tokenizer.encode("か"), tokenizer.encode("漢")
    assert len(unseen) == len(seen) + 2  # three bytes for one letter
    assert max(unseen) < PIECES


def test_the_profile_has_this_tokenizer(made: Path) -> None:
    assert made.read_bytes() == (TINY / "tokenizer.model").read_bytes()
