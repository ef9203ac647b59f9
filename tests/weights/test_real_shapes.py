"""The whole way of real weights: published form -> server -> fetch -> convert -> load -> a song.

The files have the names, containers, shards and dtypes of the published ones and come through the real manifest,
of which only sizes and hashes are replaced. The quick form is narrow; the long one has the published widths, codec
and vocoders, and two layers of 32.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from tests.weights.made import (
    SMALL_CODEC,
    SMALL_VOCODER,
    codec_state,
    lm_folder,
    published,
    saved,
    vocoder_state,
)
from yue_core.errors import WeightsError
from yue_core.lm.checkpoint import STAGE1, STAGE2
from yue_core.lm.config import LMConfig
from yue_core.lm.load import load_lm
from yue_core.pipeline import Pipeline
from yue_core.song import Sampling, SongRequest
from yue_core.weights import convert, files
from yue_core.weights.convert import CODEC_CONFIG, VOCODER_CONFIG
from yue_core.weights.fetch import fetch
from yue_core.weights.files import CHECKOUT
from yue_core.weights.manifest import TINY, profile_files

if TYPE_CHECKING:
    from tests.weights.conftest import Server


@dataclass(frozen=True)
class Widths:
    """How wide the made-up models are."""

    stage1: LMConfig
    stage2: LMConfig
    codec: dict[str, Any]
    vocoder: dict[str, int]


NARROW = Widths(
    replace(STAGE1, hidden_size=64, num_layers=2, num_heads=4, num_kv_heads=2, intermediate_size=96),
    replace(STAGE2, hidden_size=64, num_layers=2, num_heads=4, num_kv_heads=4, intermediate_size=96),
    SMALL_CODEC | {"codebook_size": 1024, "target_bandwidths": [0.5, 6]},
    SMALL_VOCODER,
)
REAL = Widths(replace(STAGE1, num_layers=2), replace(STAGE2, num_layers=2), CODEC_CONFIG, VOCODER_CONFIG)


def publish(widths: Widths, folder: Path) -> None:
    """Write all files of profile en-cot as they are published, by their targets' names."""
    lm_folder(folder / "YuE-s1-7B-anneal-en-cot", widths.stage1, shards=3)
    lm_folder(folder / "YuE-s2-1B-general", widths.stage2, shards=1)
    bundle = folder / "xcodec_mini_infer"
    (bundle / "final_ckpt").mkdir(parents=True)
    (bundle / "decoders").mkdir()
    (bundle / "final_ckpt/ckpt_00360000.pth").write_bytes(published(codec_state(widths.codec)[0]))
    for n, name in enumerate(("131000", "151000")):
        (bundle / f"decoders/decoder_{name}.pth").write_bytes(saved(vocoder_state(n, widths.vocoder)))
    shutil.copy(TINY / "tokenizer.model", folder / "tokenizer.model")
    shutil.copy(TINY / "tags.json", folder / "top_200_tags.json")


def serve(folder: Path, server: Server, checkout: Path) -> None:
    """Put the files on the server, and their sizes and hashes into a copy of the manifest."""
    lines = []
    for file in files.manifest().of("en-cot"):
        if not (folder / file.target).exists():  # as a repository may lack what is optional
            assert file.optional
            lines.append({key: value for key, value in asdict(file).items() if value != ""})
            continue
        with (folder / file.target).open("rb") as stored:
            content = memoryview(mmap.mmap(stored.fileno(), 0, access=mmap.ACCESS_READ))
        server.files[f"/{file.repo}/resolve/{file.revision}/{file.path}"] = content
        digest = hashlib.sha256(content).hexdigest()
        line = asdict(replace(file, bytes=len(content), sha256=digest))
        lines.append({key: value for key, value in line.items() if key not in ("bytes_about", "sha256_from")})
    raw = json.loads((CHECKOUT / "weights_manifest.json").read_text())
    (checkout / "weights_manifest.json").write_text(json.dumps(raw | {"files": lines}))


@pytest.fixture(params=[NARROW, pytest.param(REAL, marks=pytest.mark.long)], ids=["narrow", "real"])
def fetched(
    request: pytest.FixtureRequest, tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Widths, Path]]:
    """Made-up published files of some width, fetched from the server and converted."""
    widths: Widths = request.param
    for role in ("vocoder-vocals", "vocoder-instrumental"):
        monkeypatch.setitem(convert.MAKERS, role, (convert.MAKERS[role][0], widths.vocoder))
    monkeypatch.setitem(convert.MAKERS, "codec", (convert.MAKERS["codec"][0], widths.codec))
    publish(widths, tmp_path / "published")
    serve(tmp_path / "published", server, tmp_path)
    monkeypatch.setattr(files, "CHECKOUT", tmp_path)
    files.manifest.cache_clear()
    shutil.rmtree(tmp_path / "published")  # the server keeps what it has mapped
    fetch("en-cot", tmp_path / "weights", say=lambda _: None)
    yield widths, tmp_path / "weights"
    files.manifest.cache_clear()
    server.files.clear()
    shutil.rmtree(tmp_path / "weights")


def test_from_the_server_to_a_song(
    fetched: tuple[Widths, Path], server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    widths, root = fetched
    monkeypatch.setattr("yue_core.pipeline.STAGE1", widths.stage1)
    monkeypatch.setattr("yue_core.pipeline.STAGE2", widths.stage2)
    paths = profile_files("en-cot", root)
    assert {file.name for file in paths.stage1["en", "cot"].glob("*.safetensors")} == {
        f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3)
    }
    with pytest.raises(WeightsError, match="is needed here"):  # the stages mixed up
        load_lm(
            paths.stage1["en", "cot"],
            [1],
            normaliser=False,
            device=torch.device("cpu"),
            dtype=torch.bfloat16,
            expect=widths.stage2,
        )

    pipeline = Pipeline.load("en-cot", root=root, device="cpu", precision="fp32")
    sampling = Sampling(min_new_tokens=12, max_new_tokens=16)
    request = SongRequest("pop", "[verse]\nhello\n\n[chorus]\nhello again", seed=7, sampling=sampling)
    (song,) = pipeline.generate(request)
    assert len(song.tokens.spans) == 2
    assert 6 <= len(song.tokens.vocals) <= 16
    for name in ("song", "vocals", "instrumental"):
        assert abs(len(song.audio[name]) - 882 * len(song.tokens.vocals)) <= 882
        assert torch.from_numpy(song.audio[name]).isfinite().all()
    assert song.audio["song"].any()

    server.log.clear()
    fetch("en-cot", root, say=lambda _: None)
    assert server.log == []  # complete: not one request
