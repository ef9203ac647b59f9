"""Safetensors files read straight into the engine's final layout, without a second copy of the model."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from yue_core.errors import WeightsError
from yue_core.lm.checkpoint import FETCH_AGAIN, Stored, check_identity, check_tensors, stored_tensors
from yue_core.lm.config import LMConfig
from yue_core.lm.layout import Layer, LMWeights, Matrix, quantise_int8
from yue_core.lm.trust import trust_kernels

CHUNK_BYTES = 32 << 20  # per read, and per pinned buffer
MAX_THREADS = 8


@dataclass(frozen=True)
class Copy:
    """Consecutive rows of a stored tensor and their place in the final layout."""

    source: Stored
    first: int  # row of the source
    target: Matrix  # [n, K]


@torch.inference_mode(False)  # its threads could not fill an inference tensor
def load_lm(
    folder: Path,
    drawable: Sequence[int],
    *,
    normaliser: bool,
    device: torch.device,
    dtype: torch.dtype,
    int8: bool = False,
    expect: LMConfig | None = None,
) -> LMWeights:
    """Read `config.json` and `model*.safetensors` of `folder` into one set of tensors on `device`.

    `drawable` are the ids whose head rows are kept, in that order; with `normaliser` all others
    follow. Files may be float32, float16 or bfloat16 and are cast to `dtype`; `int8` quantises the four big
    matrices of every layer per output channel (symmetric, 127 steps a side). Raises WeightsError when the
    files are missing, cut short, or of another model than `expect`.
    """
    config_file = folder / "config.json"
    if not config_file.is_file():
        raise WeightsError(f"{config_file} is missing; {FETCH_AGAIN}.")
    config = LMConfig.from_file(config_file)
    if expect is not None:
        check_identity(config, expect, folder)
    stored = stored_tensors(folder)
    check_tensors(config, stored, folder)
    weights = allocate(config, drawable, normaliser=normaliser, device=device, dtype=dtype, int8=int8)
    _run(plan(weights, drawable, stored), device)
    trust_kernels(weights)
    return weights


def allocate(
    config: LMConfig,
    drawable: Sequence[int],
    *,
    normaliser: bool,
    device: torch.device,
    dtype: torch.dtype,
    int8: bool = False,
) -> LMWeights:
    """The final layout with uninitialised contents."""

    def vector() -> Tensor:
        return torch.empty(config.hidden_size, dtype=dtype, device=device)

    def matrix(rows: int, columns: int) -> Matrix:
        weight = torch.empty(rows, columns, dtype=torch.int8 if int8 else dtype, device=device)
        return Matrix(weight, torch.empty(rows, dtype=dtype, device=device) if int8 else None)

    h, i, v = config.hidden_size, config.intermediate_size, config.vocab_size
    layers = [
        Layer(
            input_norm=vector(),
            qkv=matrix(config.qkv_size, h),
            out=matrix(h, h),
            post_norm=vector(),
            gate_up=matrix(2 * i, h),
            down=matrix(h, i),
        )
        for _ in range(config.num_layers)
    ]
    return LMWeights(
        config=config,
        embedding=torch.empty(v, h, dtype=dtype, device=device),
        layers=layers,
        norm=vector(),
        every=torch.empty(v if normaliser else len(drawable), h, dtype=dtype, device=device),
        drawable=torch.tensor(drawable, dtype=torch.int64, device=device),
    )


def plan(weights: LMWeights, drawable: Sequence[int], stored: Mapping[str, Stored]) -> list[Copy]:
    """Which stored rows go where; rows of the head that nobody asked for are never read."""
    config = weights.config
    h, kv, i = config.hidden_size, config.kv_size, config.intermediate_size
    copies: list[Copy] = []

    def put(name: str, target: Matrix, start: int = 0, rows: int | None = None, first: int = 0) -> None:
        end = None if rows is None else start + rows
        scale = None if target.scale is None else target.scale[start:end]
        copies.append(Copy(stored[f"{name}.weight"], first, Matrix(target.weight[start:end], scale)))

    def put_vector(name: str, target: Tensor) -> None:
        put(name, Matrix(target[None]))

    put("model.embed_tokens", Matrix(weights.embedding))
    for n, layer in enumerate(weights.layers):
        prefix = f"model.layers.{n}"
        put_vector(f"{prefix}.input_layernorm", layer.input_norm)
        put(f"{prefix}.self_attn.q_proj", layer.qkv, 0, h)
        put(f"{prefix}.self_attn.k_proj", layer.qkv, h, kv)
        put(f"{prefix}.self_attn.v_proj", layer.qkv, h + kv, kv)
        put(f"{prefix}.self_attn.o_proj", layer.out)
        put_vector(f"{prefix}.post_attention_layernorm", layer.post_norm)
        put(f"{prefix}.mlp.gate_proj", layer.gate_up, 0, i)
        put(f"{prefix}.mlp.up_proj", layer.gate_up, i, i)
        put(f"{prefix}.mlp.down_proj", layer.down)
    put_vector("model.norm", weights.norm)
    for start, first, rows in _runs(drawable):
        put("lm_head", Matrix(weights.head), start, rows, first)
    if weights.rest is not None:
        kept = set(drawable)
        for start, first, rows in _runs([n for n in range(config.vocab_size) if n not in kept]):
            put("lm_head", Matrix(weights.rest), start, rows, first)
    return copies


def _runs(ids: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """Split ids into runs of consecutive ones: (position, first id, length)."""
    start = 0
    for n in range(1, len(ids) + 1):
        if n == len(ids) or ids[n] != ids[n - 1] + 1:
            yield start, ids[start], n - start
            start = n


def _run(copies: Sequence[Copy], device: torch.device) -> None:
    """Carry out all copies in a small pool of threads, in file order."""
    chunks = deque(sorted((chunk for copy in copies for chunk in _chunks(copy)), key=_position))
    files = {path: os.open(path, os.O_RDONLY) for path in {chunk.source.path for chunk in chunks}}
    threads = min(MAX_THREADS, os.cpu_count() or 1)

    def work() -> None:
        stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        buffer = torch.empty(0, dtype=torch.uint8)
        with torch.cuda.stream(stream) if stream else nullcontext():
            while chunks:
                try:
                    chunk = chunks.popleft()
                except IndexError:
                    return  # another thread took the last one
                descriptor = files[chunk.source.path]
                if _fits(chunk, device):
                    _read(descriptor, chunk, chunk.target.weight)
                    continue
                if not buffer.numel():
                    buffer = torch.empty(CHUNK_BYTES, dtype=torch.uint8, pin_memory=stream is not None)
                rows = _rows(chunk, buffer)
                _read(descriptor, chunk, rows)
                _store(rows, chunk.target)
                if stream:
                    stream.synchronize()  # the buffer is free again; other threads read meanwhile

    try:
        with ThreadPoolExecutor(threads) as pool:
            for worker in [pool.submit(work) for _ in range(threads)]:
                try:
                    worker.result()
                except BaseException:
                    chunks.clear()  # the others stop after their current chunk
                    raise
    finally:
        for descriptor in files.values():
            os.close(descriptor)


def _position(copy: Copy) -> tuple[Path, int, int]:
    return copy.source.path, copy.source.offset, copy.first


def _chunks(copy: Copy) -> Iterator[Copy]:
    """Split a copy into whole rows of at most CHUNK_BYTES together."""
    weight, scale = copy.target.weight, copy.target.scale
    step = max(1, CHUNK_BYTES // (weight.shape[1] * copy.source.dtype.itemsize))
    for n in range(0, weight.shape[0], step):
        part = Matrix(weight[n : n + step], None if scale is None else scale[n : n + step])
        yield Copy(copy.source, copy.first + n, part)


def _fits(copy: Copy, device: torch.device) -> bool:
    """Whether the file's bytes are the target's bytes, so that they can be read in place."""
    return device.type == "cpu" and copy.target.weight.dtype == copy.source.dtype


def _rows(copy: Copy, buffer: Tensor) -> Tensor:
    """The front of `buffer`, shaped to hold the copy's rows as they are stored."""
    shape, dtype = copy.target.weight.shape, copy.source.dtype
    return buffer[: shape.numel() * dtype.itemsize].view(dtype).view(shape)


def _read(descriptor: int, copy: Copy, rows: Tensor) -> None:
    """Read the copy's rows into `rows` [n, K], contiguous and of the stored dtype."""
    view = memoryview(rows.reshape(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]
    offset = copy.source.offset + copy.first * rows.shape[1] * rows.itemsize
    while view:
        count = os.preadv(descriptor, [view], offset)
        if not count:
            raise WeightsError(f"{copy.source.path} became shorter while it was read; {FETCH_AGAIN}.")
        view, offset = view[count:], offset + count


def _store(rows: Tensor, target: Matrix) -> None:
    """Cast `rows` [n, K] into the target, or quantise them when it has a scale per row."""
    rows = rows.to(target.weight.device, non_blocking=True)
    if target.scale is None:
        target.weight.copy_(rows)
        return
    quantised = quantise_int8(rows.to(target.scale.dtype))
    target.weight.copy_(quantised.weight)
    target.scale.copy_(quantised.scale)  # type: ignore[arg-type]  # a quantised matrix has one
