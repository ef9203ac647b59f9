"""The bench compares like with like: every arm writes the same tokens from the same weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from yue_core.bench import gpu
from yue_core.bench.ours import Writer, acoustic, prompt_ids, semantic, semantic_bytes
from yue_core.bench.peers import Strong, Upstream, load_peers
from yue_core.bench.run import Report, run
from yue_core.bench.shapes import SHAPES, Shape, write_checkpoint
from yue_core.commands.bench import table
from yue_core.lm.config import LMConfig
from yue_core.lm.load import load_lm
from yue_core.progress import Progress
from yue_core.song import Sampling
from yue_core.stage1 import Stage1Batch, Take
from yue_core.stage2 import refine
from yue_core.text.prompt import Prompt
from yue_core.text.vocabulary import YUE

CPU = torch.device("cpu")
SMALL = Shape(
    LMConfig(32, 1, 2, 1, 48, 83968, 8192, 10_000.0, 1e-5), LMConfig(32, 1, 2, 2, 48, 83840, 4096, 10_000.0, 1e-5), 0.1
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights whose likeliest ids are ids that every arm may draw."""
    folder = tmp_path_factory.mktemp("weights")
    for name, config, ids in (("stage1", SMALL.stage1, semantic()[1:]), ("stage2", SMALL.stage2, list(acoustic()))):
        write_checkpoint(config, folder / name, torch.float32, CPU)
        tensors = load_file(folder / name / "model.safetensors")
        head = torch.zeros_like(tensors["lm_head.weight"])
        head[ids] = tensors["lm_head.weight"][ids] * 50
        save_file(tensors | {"lm_head.weight": head}, folder / name / "model.safetensors")
    return folder


@torch.no_grad()
def test_all_arms_write_the_same_tokens(folder: Path) -> None:
    models = load_peers([folder / "stage1", folder / "stage2"], torch.float32, CPU)
    upstream, strong = Upstream(*models), Strong(*models)
    ids = prompt_ids(20)
    likeliest = Sampling(max_new_tokens=12, min_new_tokens=12, top_k=1)
    lm = load_lm(folder / "stage1", semantic(), normaliser=True, device=CPU, dtype=torch.float32)
    take = Take(Prompt(tuple(ids[:-1]), (tuple(ids[-1:]),), ()), likeliest, 0, 0, [None], [False])
    batch = Stage1Batch(lm, YUE, 1)
    batch.join(take)
    while take.section is not None:
        batch.step()
    expected = (take.audio[0] or [])[:-1]
    assert len(set(expected)) > 3
    for arm in (upstream, strong):
        assert arm.stage1(torch.tensor([ids]), 12, likeliest)[0, 20:].tolist() == expected

    codes = np.random.default_rng(1).integers(0, 1024, (2, 4)).astype(np.int16)
    lm = load_lm(folder / "stage2", acoustic(), normaliser=False, device=CPU, dtype=torch.float32)
    given = torch.from_numpy(codes.astype(np.int64)) + YUE.codebook_start
    before, after = ([[start, second]] * 2 for start, second in ((YUE.start_of_audio, YUE.stage_1), (YUE.stage_2, 0)))
    prefix = torch.cat([torch.tensor(before), given, torch.tensor(after)[:, :1]], dim=1)
    loose = load_lm(folder / "stage2", [*acoustic(), 0], normaliser=False, device=CPU, dtype=torch.float32)
    ours = refine(loose, YUE, list(codes), Progress(None))  # any acoustic id at each step, as the peers draw
    for arm in (upstream, strong):
        written = arm.stage2(prefix, given)[:, prefix.shape[1] :].view(2, 4, 8)
        starts = torch.tensor([YUE.codebook(k).start for k in range(8)])
        np.testing.assert_array_equal((written - starts).mT.numpy(), np.stack(ours))
    assert lm.head.shape[0] == len(acoustic())


@torch.no_grad()
def test_the_report_holds_every_arm_and_the_ratios_are_their_quotients(folder: Path) -> None:
    kept: list[Report] = []
    shape = replace(SMALL, seconds=0.1)
    report = run(shape, folder, 0.1, CPU, "fp32", lambda r: kept.append({**r}))
    assert list(report["arms"]) == ["ours", "ours int8", "strong", "upstream"]
    assert {arm["kind"] for arm in report["arms"].values()} == {"measured"}
    for stage in ("stage1", "stage2", "song"):
        arms = report["arms"]
        assert report["speedup"][stage] == arms["upstream"][stage]["seconds"] / arms["ours"][stage]["seconds"]
    song = report["arms"]["ours"]["song"]["seconds"]
    assert song == sum(report["arms"]["ours"][stage]["seconds"] for stage in ("stage1", "stage2"))
    assert len(kept) == 5
    assert {"import", "load", "prefill", "first tokens", "total"} == set(report["boot"])
    assert all(name in table(report) for name in report["arms"])


def test_the_limit_counts_what_a_step_reads(folder: Path) -> None:
    lm = load_lm(folder / "stage1", semantic(), normaliser=True, device=CPU, dtype=torch.float32)
    c = SMALL.stage1
    layer = (c.hidden_size * c.qkv_size + c.hidden_size**2 + 3 * c.hidden_size * c.intermediate_size) * 4
    head = c.vocab_size * c.hidden_size * 4
    keys = 2 * c.kv_size * 4
    assert semantic_bytes(lm, 10, 4) == 4 * (layer + head + 14 * keys)


def test_the_writer_leaves_its_batch_empty(folder: Path) -> None:
    lm = load_lm(folder / "stage1", semantic(), normaliser=True, device=CPU, dtype=torch.float32)
    writer = Writer(lm, 2)
    writer.write(10, 5, songs=2)
    assert writer.step_seconds(10, steps=3) > 0
    assert writer.batch.takes == [None, None]


def test_a_section_that_fails_is_noted_and_the_suite_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "SECTIONS", {"no such section": (lambda _: {}, 60), "nor this": (lambda _: {}, 60)})
    kept: list[list[str]] = []
    report = gpu.suite(tmp_path, lambda r: kept.append(list(r)))
    assert kept == [["no such section"], ["no such section", "nor this"], ["no such section", "nor this"]]
    assert "KeyError" in report["nor this"]["error"]
    assert "speedup" not in report


def test_the_shapes_are_the_published_ones() -> None:
    real = SHAPES["real"]
    assert (real.stage1.vocab_size, real.stage2.vocab_size) == (YUE.stage1_size, YUE.stage2_size)
    assert (real.stage1.hidden_size, real.stage1.num_kv_heads, real.stage2.num_kv_heads) == (4096, 4, 16)
