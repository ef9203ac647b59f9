"""What the models begin from, and what they are shown."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from training import codec, llama, stage1, stage2, vocoders
from training.examples import batch
from training.measure import si_sdr
from training.render import render
from training.score import draw_song
from training.tokenizer import VOCABULARY as V
from yue_core.audio.codec import Codec
from yue_core.audio.vocoder import Vocoder
from yue_core.text.tokenizer import Tokenizer
from yue_core.weights.manifest import TINY


def test_the_codec_begins_as_a_transform_that_gives_the_sound_back() -> None:
    waves = [torch.from_numpy(wave) for wave in render(draw_song(1), codec.RATE)]
    model = codec.new_codec()
    codec.set_transform(model, torch.cat([codec.frames(wave) for wave in waves]))
    for wave in waves:
        wave = wave[: 320 * 100]
        with torch.no_grad():
            made = model.acoustic_decoder(model.acoustic_encoder(wave[None, None]))[0, 0]
        assert si_sdr(made.numpy(), wave.numpy()) > 12


def test_the_transform_keeps_what_is_quiet() -> None:
    """A tone at a hundredth of the level of noise that fills every direction."""
    rng = torch.Generator().manual_seed(0)
    noise = torch.randn(320 * 2000, generator=rng)
    tone = 0.01 * torch.sin(2 * torch.pi * 440 / codec.RATE * torch.arange(320 * 2000))
    model = codec.new_codec()
    codec.set_transform(model, torch.cat([codec.frames(wave) for wave in (noise, tone)]))
    tone = tone[: 320 * 50]
    with torch.no_grad():
        made = model.acoustic_decoder(model.acoustic_encoder(tone[None, None]))[0, 0]
    assert si_sdr(made[320:-320].numpy(), tone[320:-320].numpy()) > 15


def test_frames_of_rare_states_are_drawn_more_often_than_songs_have_them() -> None:
    states = torch.tensor([1] * 9000 + [2] * 1000)[torch.randperm(10_000, generator=torch.Generator().manual_seed(1))]
    chosen = codec.drawn(states, 500)
    assert len(set(chosen.tolist())) == 500
    assert 0.25 < (states[chosen] == 2).float().mean() < 0.45  # 0.34 expected, 0.1 of the frames


def test_the_vocoder_begins_as_a_linear_map() -> None:
    """A context of one frame, mapped to one cosine, sounds as that cosine; nothing sounds as nothing."""
    size = vocoders.KERNEL * vocoders.CONFIG.input_channels
    inner, outer = torch.zeros(size, vocoders.RANK), torch.zeros(vocoders.RANK, 2 * vocoders.BINS)
    inner[3 * vocoders.CONFIG.input_channels, 0] = 1.0  # first entry of the vector itself
    outer[0, 20] = 8.0 / vocoders.CARRIER  # real part of bin 20: 500 Hz
    with torch.no_grad():
        model = vocoders._linear(inner, outer)
        vectors = torch.zeros(1, vocoders.CONFIG.input_channels, 20)
        assert model.head(model.backbone(vectors)).abs().max() < 1e-4
        vectors[0, 0, 10] = 1.0
        made = model.head(model.backbone(vectors))[0]
    assert made[10 * 882 : 11 * 882].abs().max() == pytest.approx(2 * 8.0 / 1764, rel=0.3)
    assert made[: 9 * 882].abs().max() < 1e-4


def test_stage_2_sequences_are_windows_as_the_product_lays_them_out() -> None:
    codes = torch.arange(16).view(1, 8, 2)
    ids = stage2.sequences(codes)[0].tolist()
    start = V.codebook_start
    assert ids[:5] == [V.start_of_audio, V.stage_1, start, start + 1, V.stage_2]
    assert ids[5:13] == [start + 1024 * k + 2 * k for k in range(8)]
    assert len(ids) == 3 + 2 + 16


def test_errors_in_stage_2_windows_are_made_good() -> None:
    """Behind a wrong code the next ones aim at what is left, and end nearer to the frame than the true ones would."""
    rng = torch.Generator().manual_seed(0)
    books = torch.randn((8, 1024, 12), generator=rng) * 0.6 ** torch.arange(8)[:, None, None]
    codes = torch.randint(1024, (4, 8, 100), generator=rng)
    codes[:, 0] = codes[:, 0] // 64
    heard, best = stage2.misheard(codes, books, stage2.Frames.of(list(codes)), 5)
    astray = (heard != codes)[:, 1:].cumsum(1) > 0  # [B, 7, T]
    assert 0.05 < astray[:, -1].float().mean() < 0.8
    assert torch.equal(heard[:, 0], codes[:, 0])
    before = torch.cat([torch.zeros_like(astray[:, :1]), astray[:, :-1]], dim=1)
    assert torch.equal(best[~before], codes[:, 1:][~before])

    def frames(some: torch.Tensor) -> torch.Tensor:
        return torch.stack([books[k][some[:, k]] for k in range(1, 8)]).sum(0)  # [B, T, D]

    mended, kept = heard.clone(), heard.clone()
    mended[:, 7], kept[:, 7] = best[:, 6], codes[:, 7]
    late = before[:, -1]
    away = [(frames(some) - frames(codes)).square().sum(2)[late] for some in (mended, kept)]
    assert (away[0] <= away[1] + 1e-4).all()
    assert away[0].mean() < away[1].mean()


def test_other_frames_of_a_state_have_that_state() -> None:
    codes = torch.arange(8)[:, None] * 100 + torch.tensor([3, 5, 3, 4, 5, 3])  # [8, 6], states 3, 4 and 5
    codes[1:] += torch.arange(6) * 1000
    states = torch.tensor([[3, 4, 5] * 50])
    drawn = stage2.Frames.of([codes]).draw(states, torch.Generator().manual_seed(0))
    assert torch.equal(drawn[:, 0], states)
    assert {tuple(frame.tolist()) for frame in drawn[0].T} == {tuple(frame.tolist()) for frame in codes.T}


@torch.no_grad()
def looks(model: llama.Llama, layer: int, head: int, ids: torch.Tensor) -> torch.Tensor:
    """How much a head looks at each of the ids [1, T], from each of them: [T, T]."""
    positions = torch.arange(ids.shape[1])[None]
    attention = model.model.layers[layer].self_attn
    residuals = [model.model.embed_tokens(ids), *model.residuals(ids, positions)]
    x = model.model.layers[layer].input_layernorm(residuals[layer])
    cos, sin = llama.rotary(positions, attention.width)
    width, key_head = attention.width, head // (attention.heads // attention.kv)
    query, key = (
        llama.rotate(project(x)[..., at * width : (at + 1) * width], cos[:, 0], sin[:, 0])[0]
        for project, at in ((attention.q_proj, head), (attention.k_proj, key_head))
    )
    later = torch.ones(len(query), len(query), dtype=torch.bool).triu(1)
    return (query @ key.T / width**0.5).masked_fill(later, -torch.inf).softmax(-1)


def test_clocks_look_at_their_marker_until_it_is_far() -> None:
    marker, length = 40, 1200
    torch.manual_seed(0)
    model = llama.Llama(llama.Shape(128, 2, 4, 2, 64, 200, 2048))
    llama.set_flags(model, [[marker], slice(None)])
    llama.set_quiet(model, 1)
    for head, distance in enumerate((200, 500)):
        llama.set_watch(model, 1, head, -2, llama.Clock(distance))
    ids = torch.randint(50, 200, (1, length))
    ids[0, 20] = marker
    for head, distance in enumerate((200, 500)):
        looked = looks(model, 1, head, ids)
        for away, low, high in ((distance - 150, 0.7, 1.0), (distance + 300, 0.0, 0.3)):
            assert low <= float(looked[20 + away, 20]) <= high


def test_the_label_head_looks_at_the_last_label() -> None:
    """Among labels a section apart, wherever in a section of the longest kind the head is."""
    label, length = 30, 2600
    torch.manual_seed(0)
    model = llama.Llama(llama.Shape(128, 4, 4, 2, 64, 200, 8192))
    llama.set_flags(model, [[label], slice(None)])
    llama.set_quiet(model, 3)
    llama.set_watch(model, 3, 3, -2, stage1.WATCHES[3, 3][1])
    ids = torch.randint(50, 200, (1, length))
    ids[0, [0, 40, 400, 800]] = label
    looked = looks(model, 3, 3, ids)
    for at, last in ((100, 40), (390, 40), (500, 400), (850, 800), (2300, 800)):
        assert float(looked[at, last]) > 0.6


def test_questions_count_at_first_and_nothing_at_last() -> None:
    shares = [stage1.asked(step) for step in range(stage1.STEPS)]
    first, last = (round(part * stage1.STEPS) for part in (stage1.ASKED_UNTIL, stage1.ASKED_UNTIL + stage1.FADES))
    assert set(shares[:first]) == {1.0}
    assert shares[(first + last) // 2] == pytest.approx(0.5)
    assert set(shares[last:]) == {0.0}
    pupil, shown = stage1.Pupil(), batch(0, Tokenizer(TINY / "tokenizer.model"))
    with torch.no_grad():
        played, half, all_of_it = (stage1.loss_of(pupil, shown, share).item() for share in (0.0, 0.5, 1.0))
    assert played < half < all_of_it
    assert half - played == pytest.approx(all_of_it - half, rel=1e-3)


def test_label_pieces_are_whole_labels_by_kind() -> None:
    tokenizer = Tokenizer(TINY / "tokenizer.model")
    verse, chorus, bridge, other = stage1.label_pieces(tokenizer)
    assert (len(verse), len(chorus), len(bridge)) == (2, 2, 2)
    assert len({*verse, *chorus, *bridge, *other}) == 6 + 2 * 3  # intro, outro and inst are of no kind
    assert set(tokenizer.encode("[Chorus]")) & {*chorus}


def test_heads_that_share_a_key_look_at_flags_of_their_own_and_stay_so() -> None:
    """One at ids below 100, alike, one at those from 150; a step of the optimiser moves neither."""
    torch.manual_seed(0)
    model = llama.Llama(llama.Shape(128, 1, 4, 2, 64, 200, 2048))
    llama.set_flags(model, [slice(0, 100), slice(150, None), slice(None)])
    llama.set_quiet(model, 0)
    llama.set_watch(model, 0, 2, -3)
    llama.set_watch(model, 0, 3, -2, slowest=2)
    llama.hold(model, 0, group=1)
    ids, positions = torch.randint(200, (1, 600)), torch.arange(600)[None]
    attention = model.model.layers[0].self_attn
    before = [looks(model, 0, head, ids)[-1] for head in (2, 3)]
    for found, seen in zip(before, (ids[0] < 100, ids[0] >= 150), strict=True):
        assert found[seen].sum() > 0.95
        assert found[seen].max() < 3 * found[seen].min()
    weights = [attention.q_proj.weight[64:].clone(), attention.k_proj.weight[32:].clone()]
    free = attention.q_proj.weight[:64].clone()
    muon = llama.optimisers(model, 0.02, 0.3, 3e-3)[0]
    for _ in range(2):  # the first step gives what attention found a way out
        model(ids, positions).square().mean().backward()  # type: ignore[no-untyped-call]
        muon.step()
    assert torch.equal(attention.q_proj.weight[64:], weights[0])
    assert torch.equal(attention.k_proj.weight[32:], weights[1])
    assert not torch.equal(attention.q_proj.weight[:64], free)


def test_weights_are_drawn_back_to_where_they_began() -> None:
    weight = torch.nn.Parameter(torch.eye(4) * 5)
    muon = llama.Muon([weight], lr=0.1, draw=0.5)
    for _ in range(300):
        weight.grad = torch.eye(4)
        muon.step()
    away = (5 - weight.diagonal()).detach()
    assert (away > 1.2).all()
    assert (away < 2.8).all()  # updates are 0.7 to 1.2 long, and 1 / draw times that is as far as they lead


def test_silence_sounds_as_silence() -> None:
    vectors = Codec.load(TINY / "xcodec", "cpu").embed(np.zeros((8, 60), dtype=np.int16))
    for stem in ("vocals", "instrumental"):
        wave = Vocoder.load(TINY / f"vocoder-{stem}", "cpu")(vectors)
        assert wave[8 * 882 : -8 * 882].square().mean().sqrt() < 1e-3


def test_the_profile_is_small() -> None:
    total = sum(path.stat().st_size for path in Path(TINY).rglob("*") if path.is_file())
    assert total <= 25_000_000
