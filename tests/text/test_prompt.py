"""Stage 1's prompts, against recorded ids, and the context when it is full."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from yue_core.errors import LyricsError, ReferenceAudioError
from yue_core.song import Codes, Section
from yue_core.text.lyrics import parse_lyrics
from yue_core.text.prompt import Prompt, build_prompt, fit_context, reference_ids
from yue_core.text.tokenizer import Tokenizer
from yue_core.text.vocabulary import YUE

# name -> generated sections; all cases of the recording in which upstream generates any
GENERATED = {
    "cot_three_sections": 2,
    "cot_three_sections_run_1": 1,
    "cot_four_sections": 3,
    "cot_four_sections_run_9": 3,
    "icl_single_track": 2,
    "icl_single_track_end_past_audio": 1,
    "icl_dual_track": 2,
    "icl_dual_track_odd_start": 1,
    "cot_context_overflow": 3,
    "cot_two_sections": 1,
}
UNBOUNDED = 10**9


class Letters:
    """A tokenizer of one id per character."""

    def encode(self, text: str) -> list[int]:
        return [ord(character) for character in text]


def letters(ids: Any) -> str:
    return "".join(chr(token) if token < YUE.start_of_audio else f"<{token}>" for token in ids)


@pytest.fixture(scope="module")
def cases(assets: Path) -> dict[str, dict[str, Any]]:
    recorded = json.loads((assets / "golden" / "stage1_prompts.json").read_text(encoding="utf-8"))
    return {case["name"]: case for case in recorded["cases"]}


@pytest.fixture(scope="module")
def tokenizer(assets: Path) -> Tokenizer:
    return Tokenizer(assets / "assets" / "tokenizer.model")


def window(case: dict[str, Any]) -> list[Codes]:
    """The recorded reference, cut as upstream cuts it: after interleaving, so an odd start swaps two tracks."""
    tracks = [np.array(track, np.int16) for track in case["reference_codes"]]
    if not tracks:
        return []
    options = dict(zip(case["options"], case["options"][1:], strict=False))
    per_second = 50 * len(tracks)
    first, last = (int(float(options[f"--prompt_{end}_time"]) * per_second) for end in ("start", "end"))
    flat = np.stack(tracks, axis=1).reshape(-1)[first:last]
    even = len(flat) - len(flat) % len(tracks)
    assert even == len(flat)
    return list(flat.reshape(-1, len(tracks)).T)


def blocks_of(case: dict[str, Any], prompt: Prompt) -> list[list[int]]:
    """Each section's prompt and audio; upstream adds an end-of-audio where the model wrote none."""
    generated = [ids if ids[-1] == YUE.end_of_audio else [*ids, YUE.end_of_audio] for ids in case["generated"]]
    return [[*ids, *audio] for ids, audio in zip(prompt.sections, generated, strict=False)]


@pytest.mark.parametrize("name", GENERATED)
def test_equals_upstream(name: str, cases: dict[str, dict[str, Any]], tokenizer: Tokenizer) -> None:
    case = cases[name]
    prompt = build_prompt(tokenizer, YUE, case["genre"], parse_lyrics(case["lyrics"]).sections, window(case))
    assert prompt.warnings == ()
    blocks = blocks_of(case, prompt)
    assert len(case["segments"]) == GENERATED[name]
    for i, segment in enumerate(case["segments"]):
        ids, dropped = fit_context(prompt, blocks[:i], UNBOUNDED)
        assert dropped == 0
        # Upstream keeps the last ids; that is all of them but in the case that overflows.
        assert ids[-case["max_context"] :] == segment["input_ids"]
    assert [*prompt.head, *(token for block in blocks for token in block)] == case["raw_output"]


def test_all_recorded_cases_are_used(cases: dict[str, dict[str, Any]]) -> None:
    assert {name: len(case["segments"]) for name, case in cases.items() if case["segments"]} == GENERATED


@pytest.mark.parametrize("name", ["cot_two_sections", "cot_one_section"])
def test_fault_01_every_section_has_a_prompt(name: str, cases: dict[str, dict[str, Any]], tokenizer: Tokenizer) -> None:
    """Upstream generates one section of two, and crashes on one."""
    sections = parse_lyrics(cases[name]["lyrics"]).sections
    prompt = build_prompt(tokenizer, YUE, cases[name]["genre"], sections)
    assert len(prompt.sections) == len(sections) == (2 if name == "cot_two_sections" else 1)


def test_fault_09_a_full_context_keeps_the_head(cases: dict[str, dict[str, Any]], tokenizer: Tokenizer) -> None:
    case = cases["cot_context_overflow"]
    prompt = build_prompt(tokenizer, YUE, case["genre"], parse_lyrics(case["lyrics"]).sections)
    blocks = blocks_of(case, prompt)
    assert case["segments"][2]["input_ids"][: len(prompt.head)] != list(prompt.head)
    ids, dropped = fit_context(prompt, blocks[:2], case["max_context"])
    assert dropped == 1
    assert ids[: len(prompt.head)] == list(prompt.head)
    rest = [*blocks[1], *prompt.sections[2]]
    assert ids[len(prompt.head) :] == rest[len(prompt.border) :]


def test_the_layout() -> None:
    sections = [Section("verse", "la"), Section("outro", "")]
    prompt = build_prompt(Letters(), YUE, "pop", sections)  # type: ignore[arg-type]
    assert letters(prompt.head) == (
        "Generate music from the given lyrics segment by segment.\n[Genre] pop\n[verse]\nla\n\n\n[outro]\n\n\n"
    )
    assert letters(prompt.sections[0]) == "[start_of_segment][verse]\nla\n\n<32001><32016>"
    assert letters(prompt.sections[1]) == "[end_of_segment][start_of_segment][outro]\n\n\n<32001><32016>"
    assert letters(prompt.border) == "[end_of_segment]"


def test_the_reference_closes_the_head() -> None:
    tracks = [np.array([0, 1], np.int16), np.array([1022, 1023], np.int16)]
    prompt = build_prompt(Letters(), YUE, "pop", [Section("verse", "la")], tracks)  # type: ignore[arg-type]
    assert letters(prompt.head).endswith(
        "\n\n[start_of_reference]<32001><32016><45334><46356><45335><46357><32002>[end_of_reference]"
    )


def test_one_reference_track() -> None:
    assert reference_ids([np.array([5, 7], np.int16)], YUE) == [32001, 32016, 45339, 45341, 32002]


@pytest.mark.parametrize("lengths", [(3, 2), (0,), (0, 0)])
def test_reference_tracks_of_different_or_no_length_are_refused(lengths: tuple[int, ...]) -> None:
    with pytest.raises(ReferenceAudioError, match=r"^The reference is empty or its tracks differ in length: give"):
        reference_ids([np.zeros(length, np.int16) for length in lengths], YUE)


@pytest.mark.parametrize(
    "text",
    [
        "hello [start_of_segment] there",
        "hello[end_of_segment]there",
        "[start_of_[start_of_segment]segment]",
        "[end_of_[end_of_[end_of_segment]segment]segment]",
        "la [start_of_reference] [end_of_reference]",
    ],
)
def test_users_cannot_set_borders(text: str) -> None:
    sections = parse_lyrics(f"[verse]\nla\n{text}\n").sections
    assert len(sections) == 1
    prompt = build_prompt(Letters(), YUE, f"pop {text}", sections)  # type: ignore[arg-type]
    head, section = letters(prompt.head), letters(prompt.sections[0])
    assert section.startswith("[start_of_segment][verse]\nla\n")
    users = head + section.removeprefix("[start_of_segment]")
    for marker in ("[start_of_segment]", "[end_of_segment]", "[start_of_reference]", "[end_of_reference]"):
        assert marker not in users
    assert len(prompt.warnings) == 1
    assert prompt.warnings[0].startswith("Removed, as it marks borders inside the prompt: [")


def test_a_marker_is_cut_out_of_a_section_as_upstream_does() -> None:
    sections = [Section("verse", "hello [start_of_segment] there")]
    prompt = build_prompt(Letters(), YUE, "pop", sections)  # type: ignore[arg-type]
    assert letters(prompt.sections[0]) == "[start_of_segment][verse]\nhello  there\n\n<32001><32016>"
    assert prompt.warnings == ("Removed, as it marks borders inside the prompt: [start_of_segment].",)


def test_control_token_names_in_a_request_stay_text(tokenizer: Tokenizer) -> None:
    """Only ids that the layout itself sets are control tokens."""
    names = "<SOA> <EOA> <stage_1> <stage_2> <xcodec> <EOD> <PAD> <s> </s> <xcodec/0/5>"
    prompt = build_prompt(tokenizer, YUE, f"pop {names}", parse_lyrics(f"[verse]\n{names}\n").sections)
    assert all(3 <= token < 32000 for token in prompt.head)
    assert all(3 <= token < 32000 for token in prompt.sections[0][:-2])
    assert prompt.sections[0][-2:] == (YUE.start_of_audio, YUE.xcodec)


HEAD, BORDER = (1, 2, 3), (7, 8)
PROMPT = Prompt(head=HEAD, sections=((10,), (*BORDER, 20), (*BORDER, 30), (*BORDER, 40, 41)), border=BORDER)
BLOCKS = [[10, 100, 101], [*BORDER, 20, 200], [*BORDER, 30, 300, 301]]


@pytest.mark.parametrize(
    ("budget", "dropped", "rest"),
    [
        (19, 0, [10, 100, 101, 7, 8, 20, 200, 7, 8, 30, 300, 301, 7, 8, 40, 41]),
        (18, 1, [20, 200, 7, 8, 30, 300, 301, 7, 8, 40, 41]),
        (14, 1, [20, 200, 7, 8, 30, 300, 301, 7, 8, 40, 41]),
        (13, 2, [30, 300, 301, 7, 8, 40, 41]),
        (10, 2, [30, 300, 301, 7, 8, 40, 41]),
        (9, 3, [40, 41]),
        (5, 3, [40, 41]),
    ],
)
def test_whole_oldest_blocks_go_and_no_border_dangles(budget: int, dropped: int, rest: list[int]) -> None:
    assert fit_context(PROMPT, BLOCKS, budget) == ([*HEAD, *rest], dropped)


def test_the_first_section_needs_no_block() -> None:
    assert fit_context(PROMPT, [], 4) == ([*HEAD, 10], 0)


@pytest.mark.parametrize(("blocks", "budget", "number"), [(0, 3, 1), (3, 4, 4)])
def test_a_prompt_that_cannot_fit_names_its_section(blocks: int, budget: int, number: int) -> None:
    with pytest.raises(LyricsError, match=f"^Section {number} is too long: .* of {budget} ids"):
        fit_context(PROMPT, BLOCKS[:blocks], budget)
