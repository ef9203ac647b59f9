"""Any input at all: no crash, no hang, no fault of ours, nothing of the server told. `--long` runs 20,000 cases."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.server.serving import clip, data_uri
from yue_core.guard import OUR_FAULT

SHORT_CASES, LONG_CASES = 250, 10_000  # of each of the two tests
LEAKS = ("Traceback", "site-packages", "/yue_core", "/tmp/", "/home/", "/root/")
STATES = {"succeeded", "failed", "canceled"}

labels = st.sampled_from(["[verse]", "[Chorus x2]", "[intro]", "【副歌】", "[end_of_segment]", "[", "]", "[ ]", "[x2]"])
words = st.one_of(
    st.text(max_size=40), st.sampled_from(["la la", "<SOA>", "</s>", "雨が", "\r\n", "﻿", "\0", "\ud83d\ude00"])
)
lyrics = st.lists(st.one_of(labels, words, st.just("\n")), max_size=20).map("".join)
numbers = st.one_of(
    st.integers(), st.integers(-3, 200), st.floats(allow_nan=False, allow_infinity=False), st.floats(0, 3)
)
anything = st.one_of(numbers, st.booleans(), st.none(), st.text(max_size=10), st.lists(st.integers(), max_size=2))
clips = st.one_of(
    st.binary(max_size=200).map(data_uri),
    st.integers(0, 32_000).map(lambda size: data_uri(clip()[:size])),
    st.text(max_size=20),
    st.just(data_uri(clip())),
)


def mostly(plausible: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.integers(0, 5).flatmap(lambda chance: plausible if chance else anything)


INPUTS = {
    "genre_tags": mostly(words),
    "num_segments": mostly(st.integers(-1, 4)),
    "seed": mostly(st.integers(-1, 2**64)),
    "reference_audio": mostly(clips),
    "reference_vocals": mostly(clips),
    "reference_instrumental": mostly(clips),
    "reference_start": mostly(st.floats(0, 3)),
    "reference_end": mostly(st.floats(0, 3)),
    "language": mostly(st.sampled_from(["auto", "en", "zh", "yue", "ja", "ko", "tlh"])),
    "max_new_tokens": mostly(st.integers(99, 6001)),
    "temperature": mostly(st.floats(0.1, 2)),
    "top_p": mostly(st.floats(0.01, 1)),
    "top_k": mostly(st.integers(0, 1025)),
    "guidance_scale": mostly(st.floats(1, 5)),
    "repetition_penalty": mostly(st.floats(1, 2)),
    "output": mostly(st.sampled_from(["song", "vocals", "instrumental", "stems"])),
    "output_format": mostly(st.sampled_from(["mp3", "wav", "flac"])),
    "variations": mostly(st.integers(0, 3)),
    "song": mostly(clips),
    "redo_section": mostly(st.integers(-1, 3)),
    "unknown": anything,
}
# A few inputs at a time, mostly plausible, so that many cases get past the server's own validation.
requests = st.tuples(lyrics, st.lists(st.sampled_from(sorted(INPUTS)), max_size=4, unique=True)).flatmap(
    lambda given: st.fixed_dictionaries({"lyrics": st.just(given[0]), **{name: INPUTS[name] for name in given[1]}})
)


@pytest.fixture
def run(request: pytest.FixtureRequest) -> Callable[[Any, Callable[..., None]], None]:
    """Run a check for many cases; the same ones each time in the short form."""
    long = request.config.getoption("--long")

    def many(cases: Any, check: Callable[..., None]) -> None:
        options = settings(
            max_examples=LONG_CASES if long else SHORT_CASES,
            derandomize=not long,
            deadline=None,
            database=None,
            phases=(Phase.explicit, Phase.generate),
            suppress_health_check=list(HealthCheck),
        )
        options(given(cases)(check))()

    return many


def check_answer(code: int, text: str) -> None:
    """What holds for every answer."""
    assert code in {200, 202, 400, 404, 413, 415, 422}, (code, text)
    if code == 200 and text.startswith('{"id"'):
        answer = json.loads(text)
        assert answer["status"] in STATES
        assert OUR_FAULT not in answer.get("error", ""), "the server's log has the traceback"
        answer.pop("output", None)  # base64 can spell anything
        text = json.dumps(answer)
    assert not [leak for leak in LEAKS if leak in text], text


def test_any_inputs(quick, run):
    outcomes: dict[str, int] = {}

    def check(inputs: dict[str, Any]) -> None:
        body = json.dumps({"input": inputs})
        response = quick.send("POST", "/predictions", content=body, headers={"Content-Type": "application/json"})
        check_answer(response.status_code, response.text)
        outcome = response.json()["status"] if response.status_code == 200 else str(response.status_code)
        outcomes[outcome] = outcomes.get(outcome, 0) + 1

    run(requests, check)
    print(outcomes)
    assert outcomes["succeeded"] > 5
    assert outcomes["failed"] > 5
    assert outcomes["422"] > 5
    assert quick.health()["status"] in ("READY", "BUSY")


def test_anything_that_the_published_schema_allows_or_forbids(quick, run):
    schema = schemathesis.openapi.from_dict(quick.http.get("/openapi.json").json())
    schema.config.update(base_url=str(quick.http.base_url))
    operation = schema["/predictions"]["POST"]
    modes = [schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE]
    cases = st.one_of(*(operation.as_strategy(generation_mode=mode) for mode in modes))

    def check(case: schemathesis.Case) -> None:
        arguments = case.as_transport_kwargs(base_url=str(quick.http.base_url))
        if isinstance(arguments.get("json"), dict):
            arguments["json"].pop("id", None)  # test_limits.py has what Cog makes of a strange one
        response = quick.send(
            arguments["method"],
            "/predictions",
            json=arguments.get("json"),
            content=arguments.get("data"),
            headers=arguments.get("headers"),
        )
        check_answer(response.status_code, response.text)

    run(cases, check)
    assert quick.predict(lyrics="[verse]\nla", genre_tags="pop")["status"] == "succeeded"
