"""Is a profile complete and sound? By size and time first; by content where those leave a doubt."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from yue_core.errors import WeightsError
from yue_core.weights.files import ABSENT, TOUCHED, Lock, WeightFile, fault, manifest, read_lock, sha256_of, write_lock

CONVERTED = {  # role -> folder of plain safetensors made from the role's pickle
    "codec": "xcodec",
    "vocoder-vocals": "vocoder-vocals",
    "vocoder-instrumental": "vocoder-instrumental",
}
CONVERTER = 1  # version; a higher one makes earlier conversions void


def converted(file: WeightFile) -> dict[str, str]:
    """What is made of a pickle: target -> origin."""
    origin = f"conversion {CONVERTER} of {file.sha256}"
    return {f"{CONVERTED[file.role]}/{name}": origin for name in ("config.json", "model.safetensors")}


def needed(profile: str) -> dict[str, str]:
    """Files that must be sound before the profile can be loaded, published or converted: target -> origin."""
    targets: dict[str, str] = {}
    for file in manifest().of(profile):
        targets |= converted(file) if file.role in CONVERTED else {file.target: file.origin}
    return targets


def faults(profile: str, root: Path, *, deep: bool = False) -> dict[str, str]:
    """Target -> what is wrong with it, for every needed file that cannot be loaded; empty when all are sound.

    A file whose modification time differs from the lock's is hashed again, with `deep` every file is. What is
    found is noted in the lock, where the folder can be written.
    """
    lock = read_lock(root)
    found = {target: fault(root, target, lock, origin) for target, origin in needed(profile).items()}
    doubtful = [
        target
        for target, words in found.items()
        if words == TOUCHED or (deep and words is None and lock[target].by != ABSENT)
    ]
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        for target, digest in zip(doubtful, pool.map(lambda t: sha256_of(root / t), doubtful), strict=True):
            found[target] = None if digest == lock[target].sha256 else "differs from what was fetched"
    _renew(root, lock, [target for target in doubtful if found[target] is None])
    return {target: words for target, words in found.items() if words}


def _renew(root: Path, lock: Lock, targets: list[str]) -> None:
    """Note the modification times of files that turned out to be unchanged."""
    times = {target: int((root / target).stat().st_mtime) for target in targets}
    renewed = {t: replace(lock[t], modified=time) for t, time in times.items() if lock[t].modified != time}
    if renewed:
        with suppress(OSError):  # a read-only folder: the same files are hashed again next time
            write_lock(root, read_lock(root) | renewed)


def require(profile: str, root: Path) -> None:
    """Raise WeightsError, naming the first fault and the command to run, unless the profile can be loaded."""
    wrong = faults(profile, root)
    if wrong:
        target, words = next(iter(wrong.items()))
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        raise WeightsError(
            f"Weights of profile {profile}: {root / target} {words}{more}; run scripts/weights fetch {profile}."
        )
