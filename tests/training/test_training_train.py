"""scripts/train_tiny's own order of things, without the training."""

from __future__ import annotations

import pytest

from training import train
from yue_core.weights.manifest import TINY


@pytest.mark.parametrize(
    ("arguments", "evaluated"), [([], True), (["--only", "text"], False), (["--out", "elsewhere"], False)]
)
def test_a_whole_profile_in_its_place_is_measured_at_the_end(monkeypatch, tmp_path, arguments, evaluated) -> None:
    done: list[str] = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["train_tiny", "--work", str(tmp_path), "--device", "cpu", *arguments])
    monkeypatch.setattr(train, "run", lambda part, *_: done.append(part))
    monkeypatch.setattr(train, "run_shared", lambda part, _: done.append(part))
    monkeypatch.setattr(train, "evaluate", lambda: done.append("evaluate"))
    train.main()
    assert TINY.is_dir()
    assert done == [*(["text"] if "text" in arguments else train.PARTS), *(["evaluate"] if evaluated else [])]
