"""The published files as weights_manifest.json lists them, and the state in which they lie on disk."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

from yue_core.errors import WeightsError

CHECKOUT = Path(__file__).resolve().parents[2]
LOCK_FILE = "weights.lock.json"  # beside the weights: what was really fetched
READ_BYTES = 4 << 20
ABSENT = "absent"  # an optional file that its repository lacks
TOUCHED = "was changed after it was checked"  # perhaps only its time


@dataclass(frozen=True)
class WeightFile:
    """One line of the manifest."""

    source: str  # "huggingface" or "github"
    repo: str
    revision: str  # commit
    path: str  # in the repository
    bytes: int | None  # exact size, where it is known
    sha256: str | None  # where it is known
    licence: str
    role: str  # "stage1/en/cot", "stage2", "codec", ...
    target: str  # path under the weights folder
    bytes_about: int = 0  # estimate where the exact size is not known
    optional: bool = False  # whether a repository may lack it
    sha256_from: str = ""  # "lfs" or "git": what the server states instead of a known sha256

    @property
    def origin(self) -> str:
        """How the lock file names where it came from."""
        return f"{self.repo}@{self.revision[:8]}/{self.path}"

    @property
    def expected_bytes(self) -> int:
        """The size, exact or estimated."""
        return self.bytes or self.bytes_about


@dataclass(frozen=True)
class Checked:
    """What the lock file remembers of a file whose content was checked."""

    bytes: int
    sha256: str
    modified: int  # seconds since the epoch
    by: str  # what vouched for the content: "manifest", "lfs", "git", "size", "conversion"; or ABSENT
    origin: str  # "m-a-p/YuE-s2-1B-general@9dfa90b7/config.json", or of what it is a conversion


Lock = dict[str, Checked]  # by target


@dataclass(frozen=True)
class Manifest:
    """All profiles and all files."""

    profiles: dict[str, tuple[str, ...]]  # profile -> roles
    files: tuple[WeightFile, ...]

    def of(self, profile: str) -> tuple[WeightFile, ...]:
        """Files of one profile; raises WeightsError when there is no such profile."""
        if profile not in self.profiles:
            raise WeightsError(f"There is no profile {profile!r}; choose one of {', '.join(self.profiles)}.")
        return tuple(file for file in self.files if file.role in self.profiles[profile])


@cache
def manifest() -> Manifest:
    """The manifest of this checkout."""
    raw = json.loads((CHECKOUT / "weights_manifest.json").read_text())
    return Manifest(
        {name: tuple(roles) for name, roles in raw["profiles"].items()},
        tuple(WeightFile(**entry) for entry in raw["files"]),
    )


def read_lock(root: Path) -> Lock:
    """The lock file of a weights folder; empty where there is none or where it is damaged."""
    try:
        raw = json.loads((root / LOCK_FILE).read_text())
        return {target: Checked(**entry) for target, entry in raw["files"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}  # every file is then hashed again before it is trusted


def write_lock(root: Path, lock: Lock) -> None:
    """Replace the lock file in one step."""
    raw = {"version": 1, "files": {target: asdict(lock[target]) for target in sorted(lock)}}
    write_atomically(root / LOCK_FILE, json.dumps(raw, indent=2) + "\n")


def write_atomically(path: Path, text: str) -> None:
    """Write a small file so that no reader ever sees half of it."""
    new = path.with_name(f"{path.name}.{os.getpid()}.new")
    with new.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)


def fault(root: Path, target: str, lock: Lock, origin: str) -> str | None:
    """What is wrong with a file, by size and modification time alone, or None when it may be loaded."""
    path = root / target
    if link := dangling(root, target):
        return link
    checked = lock.get(target)
    if not path.is_file():
        return None if checked and (checked.by, checked.origin) == (ABSENT, origin) else "is missing"
    size = path.stat().st_size
    with path.open("rb") as file:
        stand_in = disguise(file.read(512))
    if stand_in:
        return f"is {stand_in}"
    if checked is None:
        return "was never checked"
    if checked.origin != origin:
        return "is of another revision"
    if size != checked.bytes:
        return f"has {size} bytes instead of {checked.bytes}"
    if int(path.stat().st_mtime) != checked.modified:
        return TOUCHED
    return None


def dangling(root: Path, target: str) -> str | None:
    """Name the link on the way to a file that leads nowhere, if there is one."""
    path = root / target
    for link in (path, *path.parents):
        if link.is_symlink() and not link.exists():
            where = "" if link == path else f"lies below {link}, which "
            return f"{where}is a dangling link to {os.readlink(link)}"
        if link == root:
            break
    return None


def disguise(beginning: bytes) -> str | None:
    """Name what stands in for a weight file, judged by its first bytes."""
    if beginning.startswith(b"version https://git-lfs.github.com/spec/"):
        return "a Git LFS pointer, not the file itself (the repository was cloned without git-lfs)"
    if beginning.lstrip()[:9].lower().startswith((b"<!doctype", b"<html")):
        return "an HTML page, not the file (an error or login page)"
    return None


def sha256_of(path: Path) -> str:
    """Hash a whole file."""
    digest, buffer = hashlib.sha256(), bytearray(READ_BYTES)
    view = memoryview(buffer)
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            digest.update(view[:count])
    return digest.hexdigest()
