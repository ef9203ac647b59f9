"""Codebook arithmetic, against recorded ids."""

from pathlib import Path

import numpy as np
import pytest

from yue_core.text.codes import codes_to_ids, ids_to_codes
from yue_core.text.vocabulary import YUE

GOLDEN = np.load(Path(__file__).parent.parent / "golden" / "codec_tokens.npz")
CASES = [name for name in GOLDEN if name.startswith(("q1_ids_", "q8_ids_"))]


@pytest.mark.parametrize("name", CASES)
def test_equals_upstream_both_ways(name: str) -> None:
    codes, ids = GOLDEN[name.replace("_ids_", "_codes_")], GOLDEN[name]
    assert codes_to_ids(codes.astype(np.int16), YUE) == ids.tolist()
    back = ids_to_codes(ids, len(codes), YUE)
    assert back.dtype == np.int16
    np.testing.assert_array_equal(back, codes)
    np.testing.assert_array_equal(back, GOLDEN[name.replace("_ids_", "_ids2npy_")])


def test_golden_cases_are_there() -> None:
    assert len(CASES) >= 6


@pytest.mark.parametrize("codebooks", [1, 8])
def test_no_frames(codebooks: int) -> None:
    assert codes_to_ids(np.zeros((codebooks, 0), np.int16), YUE) == []
    assert ids_to_codes([], codebooks, YUE).shape == (codebooks, 0)


@pytest.mark.parametrize("code", [-1, 1024])
def test_a_code_outside_the_codebook_is_refused(code: int) -> None:
    with pytest.raises(ValueError, match="not 0 to 1023"):
        codes_to_ids(np.array([[0, code]], np.int16), YUE)


@pytest.mark.parametrize("token", [0, 32002, 45333, 46358, 57622])
def test_an_id_outside_codebook_0_is_refused(token: int) -> None:
    with pytest.raises(ValueError, match=f"id {token} in frame 1 is not of codebook 0"):
        ids_to_codes([45334, token], 1, YUE)


def test_fault_16_ids_of_a_wrong_codebook_are_refused() -> None:
    """Upstream lets them wrap around."""
    ids = [YUE.codebook(k).start for k in range(8)]
    ids_to_codes(ids, 8, YUE)
    ids[3] = YUE.codebook(2).start
    with pytest.raises(ValueError, match="frame 0 is not of codebook 3"):
        ids_to_codes(ids, 8, YUE)
    with pytest.raises(ValueError, match="is not of codebook"):
        ids_to_codes(GOLDEN["wrong_codebook_ids"], 8, YUE)


def test_half_a_frame_is_refused() -> None:
    with pytest.raises(ValueError, match="9 ids are no whole frames of 8 codebooks"):
        ids_to_codes([45334] * 9, 8, YUE)
