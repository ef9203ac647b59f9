"""Pickles become safetensors: every key in its place, every value the same, and nothing in them is ever run."""

from __future__ import annotations

import json
import os
import pickle
import sys
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor

from tests.weights.made import SMALL_CODEC, SMALL_VOCODER, codec_state, published, saved, vocoder_state, xcodec
from yue_core.audio.codec import Codec
from yue_core.audio.vocoder import Vocoder, VocoderConfig
from yue_core.errors import WeightsError
from yue_core.weights import check, convert
from yue_core.weights.convert import CODEC_CONFIG, CODEC_TENSORS, VOCODER_CONFIG, VOCODER_TENSORS, xcodec_key
from yue_core.weights.pickles import TensorArchive

if TYPE_CHECKING:
    from tests.weights.conftest import Shelf


def test_every_key_of_the_published_codec(assets: Path) -> None:
    path = assets / "facts" / "xcodec_key_map.json"
    if not path.is_file():
        pytest.skip("the key map is not among the assets")
    mapping = json.loads(path.read_text())
    assert len(mapping) == CODEC_TENSORS
    assert {key: xcodec_key(key) for key in mapping} == mapping


@pytest.fixture
def stocked(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> Shelf:
    """A shelf with the three pickles, small in width."""
    monkeypatch.setitem(convert.MAKERS, "codec", (convert.MAKERS["codec"][0], SMALL_CODEC))
    for n, role in enumerate(("vocoder-vocals", "vocoder-instrumental")):
        monkeypatch.setitem(convert.MAKERS, role, (convert.MAKERS[role][0], SMALL_VOCODER))
        shelf.add(role, f"decoder_{n}.pth", saved(vocoder_state(n, SMALL_VOCODER)))
    shelf.add("codec", "ckpt_00360000.pth", published(codec_state(SMALL_CODEC)[0]))
    return shelf


def test_fetched_pickles_become_folders_that_load(stocked: Shelf) -> None:
    stocked.fetch()
    assert stocked.complete()
    check.require("en", stocked.root)
    assert "omegaconf" not in sys.modules

    state, weight_normed = codec_state(SMALL_CODEC)
    assert len(state) == CODEC_TENSORS
    codec = Codec.load(stocked.root / "xcodec", "cpu")  # strict: none missing, none extra
    weight_normed.remove_weight_norm()  # the reference: PyTorch folds by itself
    for name, tensor in weight_normed.state_dict().items():
        torch.testing.assert_close(codec.model.state_dict()[name], tensor, rtol=1e-6, atol=1e-7)
    codes = torch.randint(0, 128, (1, 12, 9))
    with torch.no_grad():
        ours = codec.model.decode(codes).audio_values
        assert torch.equal(ours, weight_normed.decode(codes).audio_values)

    for n, folder in enumerate(("vocoder-vocals", "vocoder-instrumental")):
        vocoder = Vocoder.load(stocked.root / folder, "cpu")
        for name, tensor in vocoder_state(n, SMALL_VOCODER).items():
            assert torch.equal(vocoder.state_dict()[name], tensor)


def test_a_converted_profile_needs_its_pickles_no_more(stocked: Shelf) -> None:
    stocked.fetch()
    for target in stocked.content:
        (stocked.root / target).unlink()
    stocked.server.log.clear()
    assert stocked.fetch() == []
    check.require("en", stocked.root)
    (stocked.root / "xcodec/model.safetensors").unlink()
    stocked.fetch()
    assert [path.rsplit("/", 1)[1] for _, path, _ in stocked.server.gets()] == ["ckpt_00360000.pth"]
    check.require("en", stocked.root)


def test_conversion_is_deterministic(stocked: Shelf) -> None:
    stocked.fetch()
    file = stocked.root / "xcodec/model.safetensors"
    first = file.read_bytes()
    file.unlink()
    convert.convert("en", stocked.root, say=lambda _: None)
    assert file.read_bytes() == first


def test_round_trip_is_checked(stocked: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    def careless(tensors: dict[str, Tensor], path: Path) -> None:
        save_file({n: t + 1e-3 if n == "fc.bias" else t for n, t in tensors.items()}, path)

    save_file = convert.save_file
    monkeypatch.setattr(convert, "save_file", careless)
    with pytest.raises(WeightsError, match=r"has another fc\.bias than was written"):
        stocked.fetch()
    assert not (stocked.root / "xcodec/model.safetensors").exists()


def test_a_pickle_is_opened_only_after_its_hash_matched(stocked: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    stocked.fetch()
    pickled = stocked.root / "codec/ckpt_00360000.pth"
    pickled.write_bytes(pickled.read_bytes()[:-1] + b"!")
    os.utime(pickled, (1, 1))
    (stocked.root / "xcodec/config.json").unlink()
    monkeypatch.setattr(convert, "TensorArchive", None)  # would fail if it were opened
    with pytest.raises(WeightsError, match="was changed after it was checked; run scripts/weights fetch"):
        convert.convert("en", stocked.root, say=lambda _: None)


class Evil:
    def __init__(self, call: object, *args: object) -> None:
        self.call, self.args = call, args

    def __reduce__(self) -> tuple[object, ...]:
        return self.call, self.args


@pytest.mark.parametrize("call", ["os.system", "eval", "exec", "getattr", "open", "subprocess.call"])
def test_a_hostile_pickle_is_refused(tmp_path: Path, call: str) -> None:
    import builtins
    import subprocess

    trace = tmp_path / "was_here"
    evil = {
        "os.system": Evil(os.system, f"touch {trace}"),
        "eval": Evil(builtins.eval, f"open({str(trace)!r}, 'w')"),
        "exec": Evil(builtins.exec, f"open({str(trace)!r}, 'w')"),
        "getattr": Evil(builtins.getattr, "text", "upper"),
        "open": Evil(builtins.open, str(trace), "w"),
        "subprocess.call": Evil(subprocess.call, ["touch", str(trace)]),
    }[call]
    path = tmp_path / "x.pth"
    path.write_bytes(saved({"codec_model": {"w": torch.zeros(2)}, "evil": evil}))
    with pytest.raises(WeightsError, match="which is not a tensor; it was not opened") as error:
        TensorArchive(path)
    assert "\n" not in str(error.value)
    assert not trace.exists()
    torch.load(path, weights_only=False)  # the pickle is as hostile as it seems
    assert trace.exists() or call == "getattr"


def test_calls_inside_data_packages_are_inert(tmp_path: Path) -> None:
    """Even a function of PyTorch, reached by a dotted name, becomes a placeholder that does nothing."""
    trace = tmp_path / "was_here"
    stream = b"\x80\x04ctorch\nhub.os.system\n" + pickle.dumps((f"touch {trace}",), 4)[2:-1] + b"R."
    path = tmp_path / "x.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", stream)
    with TensorArchive(path) as archive:
        assert type(archive.content).__name__ == "Inert"
    assert not trace.exists()


def test_views_parameters_and_dtypes(tmp_path: Path) -> None:
    base = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    content = {
        "transposed": base.T,
        "slice": base[1:3, 2:5],
        "parameter": torch.nn.Parameter(base + 1),
        "half": base.half(),
        "bf16": base.bfloat16(),
        "int": torch.arange(5),
        "bool": torch.tensor([True, False]),
        "scalar": torch.tensor(2.5),
    }
    path = tmp_path / "x.pth"
    path.write_bytes(saved(content))
    with TensorArchive(path) as archive:
        found = archive.read_all(archive.content)
    assert found.keys() == content.keys()
    for name, tensor in content.items():
        assert torch.equal(found[name], tensor)
        assert found[name].dtype == tensor.dtype


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"not a zip", "is not a PyTorch checkpoint"),
        (saved({"w": torch.zeros(2)})[:200], "is not a PyTorch checkpoint"),
        (saved({"w": "text"}), "w is not a tensor"),
    ],
)
def test_what_is_no_checkpoint(tmp_path: Path, body: bytes, words: str) -> None:
    path = tmp_path / "x.pth"
    path.write_bytes(body)
    with pytest.raises(WeightsError, match=words), TensorArchive(path) as archive:
        archive.read_all(archive.content)


def test_published_codec_and_vocoder_have_a_home(assets: Path) -> None:
    """All 530 and 81 published names and shapes, on the meta device: none missing, none extra."""
    golden = assets / "golden"
    shapes = json.loads((golden / "xcodec_keys.json").read_text())["shapes"]
    state = {xcodec_key(key): torch.empty(shape, device="meta") for key, shape in shapes.items()}
    assert len(state) == CODEC_TENSORS
    folded = convert.fold_weight_norm(state)
    with torch.device("meta"):
        model = xcodec(CODEC_CONFIG)
        vocoder = Vocoder(VocoderConfig(**VOCODER_CONFIG))
    wanted = {name: tensor.shape for name, tensor in model.state_dict().items()}
    assert {name: tensor.shape for name, tensor in folded.items()} == wanted
    shapes = json.loads((golden / "vocos_keys.json").read_text())["shapes"]
    assert len(shapes) == VOCODER_TENSORS
    wanted = {name: tensor.shape for name, tensor in vocoder.state_dict().items()}
    assert {name: torch.Size(shape) for name, shape in shapes.items()} == wanted
