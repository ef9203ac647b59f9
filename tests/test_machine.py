"""The memory plan equals what the engine allocates, and doctor and setup refuse with the same sentence."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import torch

from yue_core import machine
from yue_core.commands import doctor
from yue_core.errors import MachineError, WeightsError
from yue_core.lm.checkpoint import STAGE1, STAGE2
from yue_core.lm.config import LMConfig
from yue_core.lm.kv import KVPool
from yue_core.lm.layout import LMWeights, Matrix
from yue_core.lm.load import allocate
from yue_core.machine import Gpu, check_ready, lm_bytes, machine_report, need, songs_that_fit
from yue_core.stage1 import song_capacity
from yue_core.stage2 import WINDOW, slots_of
from yue_core.text.vocabulary import YUE

CPU = torch.device("cpu")
GB = 10**9


def allocated(weights: LMWeights) -> int:
    """Bytes of all tensors of a layout."""
    tensors = [weights.embedding, weights.norm, weights.every]
    for layer in weights.layers:
        for value in vars(layer).values():
            if isinstance(value, Matrix):
                tensors += [value.weight] + ([value.scale] if value.scale is not None else [])
            else:
                tensors.append(value)
    return sum(tensor.nbytes for tensor in tensors)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16", "int8"])
@pytest.mark.parametrize("config", [STAGE1, STAGE2])
def test_predicted_weights_are_what_is_allocated(config: LMConfig, precision: str) -> None:
    dtype = {"fp32": torch.float32, "fp16": torch.float16}.get(precision, torch.bfloat16)
    for kept, normaliser in ((1025, True), (7168, False)):
        weights = allocate(
            config,
            range(kept),
            normaliser=normaliser,
            device=torch.device("meta"),
            dtype=dtype,
            int8=precision == "int8",
        )
        rows = config.vocab_size if normaliser else kept
        assert lm_bytes(config, precision, rows) == allocated(weights)


def test_published_figures() -> None:
    wanted = need("en-cot", "bf16", 60.0)
    assert wanted.stage1 == 12_449_226_752  # facts: the whole checkpoint
    assert wanted.windows == 20
    stage1 = allocate(STAGE1, [1], normaliser=False, device=torch.device("meta"), dtype=torch.bfloat16)
    assert wanted.song == sum(song_capacity(stage1)) * KVPool.bytes_per_token(STAGE1, torch.bfloat16)
    assert wanted.window == slots_of(WINDOW, YUE) * KVPool.bytes_per_token(STAGE2, torch.bfloat16)
    assert need("en", "bf16", 60.0).stage1 == 2 * wanted.stage1
    assert need("all", "bf16", 60.0).stage1 == 6 * wanted.stage1
    assert need("en-cot", "int8", 60.0).least < wanted.least < need("en-cot", "fp32", 60.0).least
    assert wanted.ideal - wanted.least == 19 * wanted.window
    assert need("en-cot", "bf16", 60.1).windows == 22


def test_songs_that_fit() -> None:
    wanted = need("en-cot", "bf16", 60.0)
    assert songs_that_fit(wanted, wanted.least - 1) == 0
    assert songs_that_fit(wanted, wanted.least) == 1
    assert songs_that_fit(wanted, wanted.least + wanted.song) == 2
    assert songs_that_fit(wanted, 10**12) == machine.MAX_SONGS


def test_tiny_is_ready_here_and_published_weights_are_named(tmp_path: Path) -> None:
    check_ready("tiny", CPU, 60.0)
    with pytest.raises(WeightsError, match="run scripts/weights fetch en-cot"):
        check_ready("en-cot", CPU, 60.0, root=tmp_path)
    with pytest.raises(WeightsError, match="no profile"):
        check_ready("fr", CPU, 60.0, root=tmp_path)


@pytest.mark.parametrize(
    ("profile", "precision", "free", "words"),
    [
        ("en-cot", "fp32", 30 * GB, r"needs 38\.9 GB .* 30\.0 GB are free; choose the precision bf16\."),
        ("en-cot", "bf16", 16 * GB, r"16\.0 GB are free; choose the precision int8\."),
        ("all", "int8", 20 * GB, r"choose a smaller profile, such as en-cot in int8\."),
        ("en-cot", "int8", 5 * GB, r"free some or use a larger machine\."),
    ],
)
def test_too_little_memory(
    monkeypatch: pytest.MonkeyPatch, profile: str, precision: str, free: int, words: str
) -> None:
    monkeypatch.setattr(machine, "free_memory", lambda _: free)
    monkeypatch.setattr(machine, "require", lambda *_: None)
    with pytest.raises(MachineError, match=words) as error:
        check_ready(profile, CPU, 60.0, precision)
    text, ready = machine_report(profile, 60.0, CPU, precision, Path("/nowhere"))
    assert not ready
    assert text.endswith(f"not ready: {error.value}")  # the same sentence


def test_gpu_that_pytorch_cannot_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "gpus", lambda: [Gpu("NVIDIA L40S", "570.1", 48 * GB, 47 * GB)])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(MachineError, match=r"NVIDIA L40S.* built for the CPU only"):
        check_ready("tiny", None, 60.0)
    text, ready = machine_report("tiny", 60.0)
    assert not ready
    assert "! This machine has a GPU" in text
    check_ready("tiny", CPU, 60.0)  # asked for on purpose
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    with pytest.raises(MachineError, match=r"cannot use the GPU .* driver 570\.1; install a driver for CUDA 13\.0"):
        check_ready("tiny", None, 60.0)


def test_driver_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = "NVIDIA H200, 575.57.08, 143771, 143000\nNVIDIA H200, 575.57.08, 143771, 1\n"
    monkeypatch.setattr(machine.shutil, "which", lambda _: "/usr/bin/nvidia-smi")
    monkeypatch.setattr(machine.subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], 0, stdout=answer))
    found = machine.gpus()
    assert found[0] == Gpu("NVIDIA H200", "575.57.08", 143771 << 20, 143000 << 20)
    assert len(found) == 2

    def broken(*_: object, **__: object) -> object:
        raise subprocess.CalledProcessError(9, "nvidia-smi")

    monkeypatch.setattr(machine.subprocess, "run", broken)
    assert machine.gpus() == []


def test_report_names_what_is_there(tmp_path: Path) -> None:
    text, ready = machine_report("tiny", 60.0, CPU, root=tmp_path / "weights")
    assert ready
    assert text.endswith("ready")
    for words in ("CPU", "GPU", "PyTorch", "disk", "ffmpeg", "flash-attn", "tiny", "en-cot", "largest fit"):
        assert f"\n  {words} " in text
    assert "en-cot        17.9 GB  17 files missing" in text
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights/tokenizer.model").write_text("version https://git-lfs.github.com/spec/v1\n")
    text, _ = machine_report("en", 60.0, CPU, root=tmp_path / "weights")
    assert "corrupt: tokenizer.model is a Git LFS pointer" in text


def test_doctor_exit_codes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("YUE_WEIGHTS", str(tmp_path))
    assert doctor.main(["--device", "cpu"]) == 0
    assert doctor.main(["--profile", "en", "--device", "cpu"]) == 1
    assert "not ready: Weights of profile en:" in capsys.readouterr().out
    assert doctor.main(["--profile", "fr", "--device", "cpu"]) == 2
    assert "no profile 'fr'" in capsys.readouterr().err
    assert doctor.main(["--device", "toaster"]) == 2
    assert "'toaster' cannot be used" in capsys.readouterr().err
