"""The manifest is what its schema says, and a profile's files are where the loaders look."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest

from yue_core.errors import WeightsError
from yue_core.text.vocabulary import YUE
from yue_core.weights import files, manifest
from yue_core.weights.check import CONVERTED, needed
from yue_core.weights.files import CHECKOUT, Checked
from yue_core.weights.manifest import PROFILES, profile_files, weights_root

RAW = json.loads((CHECKOUT / "weights_manifest.json").read_text())
SCHEMA = json.loads((CHECKOUT / "yue_core/weights/manifest.schema.json").read_text())


def test_manifest_follows_its_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    jsonschema.Draft202012Validator(SCHEMA).validate(RAW)


@pytest.mark.parametrize(
    "change",
    [
        {"revision": "main"},
        {"sha256": "abc"},
        {"target": "../outside"},
        {"target": "/outside"},
        {"bytes": None},
        {"role": "stage3"},
        {"extra": 1},
        {"sha256": None},
    ],
)
def test_schema_refuses(change: dict[str, object]) -> None:
    known = next(line for line in RAW["files"] if line["bytes"] and line["sha256"])
    broken = RAW | {"files": [known | change]}
    assert not jsonschema.Draft202012Validator(SCHEMA).is_valid(broken)


def test_profiles_and_their_sizes() -> None:
    """About 18 GB for English without reference clips, 31 GB with, 80 GB for everything."""
    listed = files.manifest()
    assert tuple(listed.profiles) == PROFILES
    size = {p: sum(file.expected_bytes for file in listed.of(p)) / 1e9 for p in PROFILES}
    assert size["tiny"] == 0
    assert 17.5 < size["en-cot"] < 18.5
    assert 30 < size["en"] < 31.5
    assert size["en"] == pytest.approx(size["zh"]) == pytest.approx(size["jp-kr"])
    assert 79.5 < size["all"] < 80.5
    assert {file.target for file in listed.of("all")} == {file.target for file in listed.files}
    assert len({file.target for file in listed.files}) == len(listed.files)


def test_only_needed_files_are_listed() -> None:
    names = {file.path.rsplit("/", 1)[-1] for file in files.manifest().files}
    assert "pytorch_model.bin" not in names  # HuBERT's values are in the codec's checkpoint
    assert not {name for name in names if name.endswith((".md", ".py", ".yaml"))}
    pickles = [file for file in files.manifest().files if file.path.endswith(".pth")]
    assert all(file.sha256 and file.bytes for file in pickles)  # never opened on a server's word
    assert {file.role for file in pickles} == set(CONVERTED)


def test_unknown_profile() -> None:
    with pytest.raises(WeightsError, match=r"no profile 'fr'; choose one of tiny, en, "):
        profile_files("fr", Path("/nowhere"))


def test_missing_profile_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"is missing \(and 16 more\); run scripts/weights fetch en-cot\."):
        profile_files("en-cot", tmp_path)


@pytest.mark.parametrize(
    ("profile", "pairs"),
    [
        ("en", {("en", "cot"), ("en", "icl")}),
        ("en-cot", {("en", "cot")}),
        ("zh", {("zh", "cot"), ("zh", "icl")}),
        ("jp-kr", {("jp-kr", "cot"), ("jp-kr", "icl")}),
        ("all", {(language, mode) for language in ("en", "zh", "jp-kr") for mode in ("cot", "icl")}),
    ],
)
def test_complete_profile(tmp_path: Path, profile: str, pairs: set[tuple[str, str]]) -> None:
    lock = {}
    for target, origin in needed(profile).items():
        path = tmp_path / target
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(target)
        lock[target] = Checked(len(target), "0" * 64, int(path.stat().st_mtime), "manifest", origin)
    files.write_lock(tmp_path, lock)
    found = profile_files(profile, tmp_path)
    assert set(found.stage1) == pairs
    for (language, mode), folder in found.stage1.items():
        assert folder == tmp_path / f"YuE-s1-7B-anneal-{language}-{mode}"
        assert (folder / "config.json").is_file()
        assert len(list(folder.glob("*.safetensors"))) == 3
        assert (folder / "model.safetensors.index.json").is_file()
    assert found.stage2 == tmp_path / "YuE-s2-1B-general"
    for folder in (found.stage2, found.codec, found.vocoder_vocals, found.vocoder_instrumental):
        assert (folder / "config.json").is_file()
        assert (folder / "model.safetensors").is_file()
    assert found.tokenizer.is_file()
    assert found.tags is not None
    assert found.tags.is_file()
    assert found.vocabulary == YUE


def test_tiny_is_part_of_the_code() -> None:
    found = profile_files("tiny", Path("/nowhere"))
    assert len(found.stage1) == 6
    assert len(set(found.stage1.values())) == 1
    for folder in (found.stage1["zh", "icl"], found.stage2, found.codec, found.vocoder_vocals):
        assert (folder / "model.safetensors").is_file()
    assert found.tokenizer.is_file()


def test_weights_root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("YUE_WEIGHTS", raising=False)
    monkeypatch.chdir(tmp_path)
    assert weights_root() == CHECKOUT / "weights"
    monkeypatch.setenv("YUE_WEIGHTS", str(tmp_path / "x"))
    assert weights_root() == tmp_path / "x"


def test_broken_tiny(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(manifest, "TINY", tmp_path)
    with pytest.raises(WeightsError, match="missing or incomplete"):
        profile_files("tiny", tmp_path)


def run_weights(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The command as the script starts it, but for the virtual environment."""
    command = [sys.executable, "-P", "-m", "yue_core.commands.weights", *arguments]
    environment = os.environ | {"PYTHONPATH": str(CHECKOUT)}
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd="/")


def test_command_says_what_is_missing(tmp_path: Path) -> None:
    done = run_weights("--root", str(tmp_path), "fetch", "zh", "--offline")
    assert done.returncode == 2
    assert re.fullmatch(r"error: .* run scripts/weights fetch zh\.\n", done.stderr)
    done = run_weights("--root", str(tmp_path), "check", "zh")
    assert done.returncode == 2
    assert "23 files are not as they should be" in done.stderr
    assert done.stdout.count(" is missing\n") == 23


def test_command_lists_and_needs_nothing_for_tiny(tmp_path: Path) -> None:
    done = run_weights("list", "en")
    assert done.returncode == 0
    assert len(done.stdout.splitlines()) == len(files.manifest().of("en"))
    assert run_weights("--root", str(tmp_path), "fetch", "tiny").returncode == 0
    assert list(tmp_path.iterdir()) == []


def test_bench_measures_a_real_fetch() -> None:
    done = run_weights("bench", "0.02")
    assert done.returncode == 0, done.stderr
    assert re.search(r"^fetch and check +\d+ MB/s, \d+% of it$", done.stdout, re.M)


def test_baking_instructions_do_what_they_say(tmp_path: Path) -> None:
    """The commands of docs/weights.md, run on copies: weights go into the image, pickles and leftovers do not."""
    for name in (".dockerignore", "cog.yaml"):
        (tmp_path / name).write_text((CHECKOUT / name).read_text())
    assert "/weights" in (tmp_path / ".dockerignore").read_text().splitlines()  # as the other two ways need it
    commands = re.findall(r"^sed -i .*$", (CHECKOUT / "docs/weights.md").read_text(), re.M)
    assert len(commands) == 2
    for command in commands:
        subprocess.run(["bash", "-c", command], cwd=tmp_path, check=True)
    ignored = (tmp_path / ".dockerignore").read_text().splitlines()
    assert "/weights" not in ignored
    assert {"/weights/xcodec_mini_infer", "/weights/.fetch.lock", "/weights/**/*.part"} <= set(ignored)
    assert "YUE_FETCH=0" in (tmp_path / "cog.yaml").read_text()
