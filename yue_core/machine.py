"""What this machine has, what a profile will take, and whether the one is enough for the other."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import subprocess
from dataclasses import dataclass
from math import ceil, prod
from pathlib import Path

import torch

from yue_core.device import PRECISIONS, default_device, default_precision, free_memory
from yue_core.ensemble import MAX_SONGS
from yue_core.errors import MachineError, WeightsError
from yue_core.lm.checkpoint import STAGE1, STAGE2, tensor_shapes
from yue_core.lm.config import LMConfig
from yue_core.lm.kv import KVPool
from yue_core.song import FRAMES_PER_SECOND
from yue_core.stage1 import MAX_NEW_TOKENS
from yue_core.stage2 import WINDOW, slots_of
from yue_core.text.vocabulary import YUE, Vocabulary
from yue_core.weights.check import faults, require
from yue_core.weights.files import manifest
from yue_core.weights.manifest import PROFILES, profile_files, weights_root

CODEC_BYTES = 889_000_000  # float32: X-Codec 743.6 MB, two vocoders of 72.5 MB (facts: weights, section C)
ALLOWANCE = 1_500_000_000  # bytes for CUDA itself and for activations; a provision, not a measurement
GPU_MEMORY_SHARE = 0.9  # of free memory that stage 2 fills with windows


@dataclass(frozen=True)
class Gpu:
    """One GPU as its driver sees it."""

    name: str
    driver: str
    total: int  # bytes
    free: int  # bytes


@dataclass(frozen=True)
class Need:
    """Memory of a profile on its device, in bytes."""

    stage1: int  # weights of all its stage-1 checkpoints
    stage2: int  # weights
    codec: int  # weights, vocoders included
    song: int  # stage 1's keys and values of one song
    window: int  # stage 2's keys and values of one window of six seconds
    windows: int  # of the whole song, both tracks

    @property
    def least(self) -> int:
        """What one song needs, with stage 2 working through it window by window."""
        return self.stage1 + self.stage2 + self.codec + self.song + self.window + ALLOWANCE

    @property
    def ideal(self) -> int:
        """What one song takes with all its windows at once, the fastest way."""
        return self.least + (self.windows - 1) * self.window


def lm_bytes(config: LMConfig, precision: str, head_rows: int) -> int:
    """Memory of a language model's weights with `head_rows` rows of its head (`lm.layout`)."""
    others = PRECISIONS[precision].itemsize
    matrices = 1 if precision == "int8" else others
    total = 0
    for name, shape in tensor_shapes(config).items():
        if name == "lm_head.weight":
            total += head_rows * config.hidden_size * others
        elif ".layers." in name and len(shape) == 2:
            total += prod(shape) * matrices + (shape[0] * others if precision == "int8" else 0)
        else:
            total += prod(shape) * others
    return total


def need(profile: str, precision: str, seconds: float) -> Need:
    """Predict a profile's memory for a song of `seconds`; published files need not be there."""
    if profile == "tiny":
        files = profile_files(profile, weights_root())
        first, second = (LMConfig.from_file(f / "config.json") for f in (files.stage1["en", "cot"], files.stage2))
        codecs = (files.codec, files.vocoder_vocals, files.vocoder_instrumental)
        codec = 2 * sum((folder / "model.safetensors").stat().st_size for folder in codecs)  # stored in float16
        vocabulary, checkpoints = files.vocabulary, 1
    else:
        roles = {file.role for file in manifest().of(profile)}
        first, second, codec, vocabulary = STAGE1, STAGE2, CODEC_BYTES, YUE
        checkpoints = sum(role.startswith("stage1/") for role in roles)
    dtype = PRECISIONS[precision]
    return Need(
        stage1=checkpoints * lm_bytes(first, precision, first.vocab_size),
        stage2=lm_bytes(second, precision, acoustic_rows(vocabulary)),
        codec=codec,
        song=(first.max_positions + min(first.max_positions, MAX_NEW_TOKENS + 1))
        * KVPool.bytes_per_token(first, dtype),
        window=slots_of(WINDOW, vocabulary) * KVPool.bytes_per_token(second, dtype),
        windows=2 * ceil(seconds * FRAMES_PER_SECOND / WINDOW),
    )


def acoustic_rows(vocabulary: Vocabulary) -> int:
    """Ids that stage 2 draws from."""
    return (vocabulary.num_codebooks - 1) * vocabulary.codebook_size


def songs_that_fit(wanted: Need, free: int) -> int:
    """How many variations fit side by side, up to MAX_SONGS."""
    return max(0, min(MAX_SONGS, 1 + (free - wanted.least) // wanted.song))


def gpus() -> list[Gpu]:
    """GPUs that the NVIDIA driver knows, whatever PyTorch thinks of them."""
    if not shutil.which("nvidia-smi"):
        return []
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total,memory.free", "--format=csv,noheader,nounits"]
    try:
        lines = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout.splitlines()
    except (OSError, subprocess.SubprocessError):
        return []
    found = []
    for line in lines:
        name, driver, total, free = (field.strip() for field in line.split(","))
        found.append(Gpu(name, driver, int(total) << 20, int(free) << 20))
    return found


def idle_gpu() -> str | None:
    """A sentence on GPUs that PyTorch cannot use, or None."""
    found = gpus()
    if not found or torch.cuda.is_available():
        return None
    if torch.version.cuda is None:
        return (
            f"This machine has a GPU ({found[0].name}) but PyTorch {torch.__version__} is built for the CPU only; "
            "install a CUDA build of it, or choose the device cpu."
        )
    return (
        f"PyTorch {torch.__version__} cannot use the GPU ({found[0].name}) with driver {found[0].driver}; "
        f"install a driver for CUDA {torch.version.cuda}, or choose the device cpu."
    )


def check_ready(
    profile: str,
    device: torch.device | None,
    song_seconds: float,
    precision: str | None = None,
    root: Path | None = None,
) -> None:
    """Raise MachineError or WeightsError, in one sentence, unless the profile can be loaded and sing here.

    With no `device` the default one is taken, and a GPU that PyTorch cannot use is an error.
    """
    if device is None and (words := idle_gpu()):
        raise MachineError(words)
    device = device or default_device()
    precision = precision or default_precision(device)
    if profile != "tiny":
        require(profile, root or weights_root())
    wanted, free = need(profile, precision, song_seconds), free_memory(device)
    if wanted.least > free:
        raise MachineError(
            f"Profile {profile} in {precision} needs {wanted.least / 1e9:.1f} GB of memory on {device} and "
            f"{free / 1e9:.1f} GB are free; {_way_out(profile, precision, song_seconds, free)}."
        )


def _way_out(profile: str, precision: str, seconds: float, free: int) -> str:
    """The largest setting that would fit, as advice."""
    for smaller in {"fp32": ("bf16", "int8"), "bf16": ("int8",), "fp16": ("int8",), "int8": ()}[precision]:
        if need(profile, smaller, seconds).least <= free:
            return f"choose the precision {smaller}"
    if profile not in ("tiny", "en-cot") and need("en-cot", "int8", seconds).least <= free:
        return "choose a smaller profile, such as en-cot in int8"
    return "free some or use a larger machine"


def machine_report(
    profile: str,
    song_seconds: float,
    device: torch.device | None = None,
    precision: str | None = None,
    root: Path | None = None,
) -> tuple[str, bool]:
    """All that matters about this machine, as lines of text, and whether it is ready for the profile."""
    root = root or weights_root()
    chosen = device or default_device()
    precision = precision or default_precision(chosen)
    lines = ["machine", *_hardware(root), "", f"weights in {root}", *_profiles(root), ""]
    lines += [f"memory of profile {profile} in {precision} on {chosen}, for {song_seconds:g} s of song"]
    lines += _memory(profile, precision, song_seconds, chosen)
    try:
        check_ready(profile, device, song_seconds, precision, root)
    except (MachineError, WeightsError) as error:
        return "\n".join([*lines, "", f"not ready: {error}"]), False
    return "\n".join([*lines, "", "ready"]), True


def _row(name: str, value: str) -> str:
    return f"  {name:<12} {value}"


def _hardware(root: Path) -> list[str]:
    cpu = torch.device("cpu")
    rows = [_row("CPU", f"{os.cpu_count()} cores, {free_memory(cpu) / 1e9:.1f} GB of memory free")]
    for gpu in gpus():
        size = f"{gpu.free / 1e9:.1f} of {gpu.total / 1e9:.1f} GB free"
        rows.append(_row("GPU", f"{gpu.name}, {size}, driver {gpu.driver}"))
    if len(rows) == 1:
        rows.append(_row("GPU", "none"))
    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU only"
    rows.append(_row("PyTorch", f"{torch.__version__} ({build})"))
    if words := idle_gpu():
        rows.append(_row("", f"! {words}"))
    there = next(folder for folder in (root, *root.parents) if folder.exists())
    rows.append(_row("disk", f"{shutil.disk_usage(there).free / 1e9:.1f} GB free for {root}"))
    ffmpeg = shutil.which("ffmpeg")
    rows.append(_row("ffmpeg", ffmpeg or "not installed (only M4A, AAC, WMA and WebM clips need it)"))
    try:
        attention = importlib.metadata.version("flash-attn")
    except importlib.metadata.PackageNotFoundError:
        attention = "not installed (optional)"
    return [*rows, _row("flash-attn", attention)]


def _profiles(root: Path) -> list[str]:
    rows = []
    for profile in PROFILES:
        if profile == "tiny":
            rows.append(_row("tiny", "complete (part of the code)"))
            continue
        size = sum(file.expected_bytes for file in manifest().of(profile)) / 1e9
        wrong = faults(profile, root)
        absent = sum(words == "is missing" for words in wrong.values())
        if not wrong:
            state = "complete"
        elif absent == len(wrong):
            state = f"{absent} files missing"
        else:
            target, words = next((t, w) for t, w in wrong.items() if w != "is missing")
            state = f"corrupt: {target} {words}" + (f", {absent} files missing" if absent else "")
        rows.append(_row(profile, f"{size:5.1f} GB  {state}"))
    return rows


def _memory(profile: str, precision: str, seconds: float, device: torch.device) -> list[str]:
    wanted, free = need(profile, precision, seconds), free_memory(device)
    songs = songs_that_fit(wanted, free)
    beside = max(0, int(free * GPU_MEMORY_SHARE) - wanted.least)
    windows = min(wanted.windows, 1 + beside // wanted.window)
    rows = [
        _row("stage 1", f"{wanted.stage1 / 1e9:6.2f} GB of weights, {wanted.song / 1e9:.2f} GB for each song"),
        _row(
            "stage 2",
            f"{wanted.stage2 / 1e9:6.2f} GB of weights, {wanted.window / 1e9:.2f} GB for each of "
            f"{wanted.windows} windows",
        ),
        _row("codec", f"{wanted.codec / 1e9:6.2f} GB"),
        _row("in all", f"{wanted.least / 1e9:6.2f} GB at least, {wanted.ideal / 1e9:.2f} GB with all windows at once"),
        _row("free", f"{free / 1e9:6.2f} GB"),
    ]
    if songs:
        fits = f"{songs} variation{'s' if songs > 1 else ''} at once, {windows} windows of stage 2 beside one"
        return [*rows, _row("largest fit", fits)]
    return [*rows, _row("largest fit", f"does not fit; {_way_out(profile, precision, seconds, free)}")]
