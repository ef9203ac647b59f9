"""The tokenizer: equal to upstream on ordinary text, and text never becomes a control token."""

import json
from pathlib import Path

import pytest
import sentencepiece
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from yue_core.errors import WeightsError
from yue_core.text.tokenizer import Tokenizer

SPECIAL = json.loads((Path(__file__).parent.parent / "golden" / "tokenizer_special.json").read_text(encoding="utf-8"))
NAMES = [*SPECIAL["matched_in_text"], *SPECIAL["pieces_32000_32021"], *SPECIAL["piece_samples"].values()]
FIRST_TEXT_ID, FIRST_SPECIAL_ID = 3, 32000  # below: <unk>, <s>, </s>; from here on: control tokens and codes


@pytest.fixture(scope="module")
def model_file(assets: Path) -> Path:
    return assets / "assets" / "tokenizer.model"


@pytest.fixture(scope="module")
def tokenizer(model_file: Path) -> Tokenizer:
    return Tokenizer(model_file)


def is_text(ids: list[int]) -> bool:
    return all(FIRST_TEXT_ID <= token < FIRST_SPECIAL_ID for token in ids)


def test_equals_upstream_on_ordinary_text(tokenizer: Tokenizer, assets: Path) -> None:
    lines = (assets / "golden" / "tokenizer.jsonl").read_text(encoding="utf-8").split("\n")
    cases = [json.loads(line) for line in lines if line]
    ordinary = [case for case in cases if not any(name in case["text"] for name in SPECIAL["matched_in_text"])]
    assert (len(cases), len(ordinary)) == (106, 84)
    for case in ordinary:
        assert tokenizer.encode(case["text"]) == case["ids"], case["text"]


@pytest.mark.parametrize("name", [name for name in dict.fromkeys(NAMES) if name.startswith("<")])
def test_the_name_of_a_control_token_is_text(tokenizer: Tokenizer, name: str) -> None:
    for text in (name, f"a{name}b", f"a {name} b", name * 3, f"\n{name}\n", f"<{name}>", f"[verse]{name}"):
        ids = tokenizer.encode(text)
        assert ids, text
        assert is_text(ids), text


def test_no_text_at_all_becomes_a_control_token(model_file: Path) -> None:
    """Byte pair encoding makes a piece by joining two pieces: no control token or code can be made that way."""
    model = sentencepiece.SentencePieceProcessor(model_file=str(model_file))
    pieces = {model.id_to_piece(i): i for i in range(model.vocab_size())}
    assert len(pieces) == SPECIAL["sentencepiece_pieces"]
    reachable = [
        piece
        for piece, token in pieces.items()
        if token >= FIRST_SPECIAL_ID and any(piece[:i] in pieces and piece[i:] in pieces for i in range(1, len(piece)))
    ]
    assert reachable == []


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.lists(st.one_of(st.sampled_from(NAMES), st.text(max_size=8)), max_size=8).map("".join))
def test_any_text_is_text(tokenizer: Tokenizer, text: str) -> None:
    assert is_text(tokenizer.encode(text))


@pytest.mark.parametrize("text", ["\ud800", "a\udfffb", "\ud83d\udc00"])
def test_lone_surrogates_are_question_marks(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.encode(text) == tokenizer.encode("".join("?" if "\ud800" <= c <= "\udfff" else c for c in text))


@pytest.mark.parametrize("content", [None, b"", b"version https://git-lfs.github.com/spec/v1\n"])
def test_a_missing_or_broken_file_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "tokenizer.model"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(WeightsError, match=r"tokenizer\.model cannot be read, fetch it again"):
        Tokenizer(path)
