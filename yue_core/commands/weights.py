"""scripts/weights: fetch, check and convert the published weights."""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

from yue_core.errors import WeightsError, YuEError
from yue_core.weights.manifest import PROFILES, weights_root

ROUNDS = 5  # of the bench


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; 0 when it did what it should, 2 with one sentence when it could not."""
    arguments = parser().parse_args(argv)
    root = arguments.root or weights_root()
    try:
        if arguments.command == "list":
            list_files(arguments.profile)
        elif arguments.command == "fetch":
            from yue_core.weights.fetch import fetch

            fetch(arguments.profile, root, offline=arguments.offline)
            print(f"Profile {arguments.profile} is complete in {root}.")
        elif arguments.command == "convert":
            from yue_core.weights.convert import convert

            convert(arguments.profile, root)
        elif arguments.command == "check":
            check(arguments.profile, root)
        else:
            bench(arguments.gigabytes)
    except YuEError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on from here", file=sys.stderr)
        return 130
    return 0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    it = argparse.ArgumentParser(prog="scripts/weights", description=__doc__)
    it.add_argument("--root", type=Path, metavar="FOLDER", help="default: YUE_WEIGHTS, or weights beside the code")
    commands = it.add_subparsers(dest="command", required=True)
    for name, words in (
        ("fetch", "bring a profile's files here, check and convert them; again and again is fine"),
        ("convert", "convert the fetched codec and vocoders (fetch does it by itself)"),
        ("check", "hash every file of a profile again"),
        ("list", "files, sizes and hashes of a profile"),
    ):
        command = commands.add_parser(name, help=words, description=words)
        command.add_argument("profile", choices=PROFILES)
        if name == "fetch":
            command.add_argument("--offline", action="store_true", help="only say what is missing")
    command = commands.add_parser("bench", help="speed of a fetch from this machine itself, beside sha256sum")
    command.add_argument("gigabytes", type=float, nargs="?", default=1.0)
    return it


def list_files(profile: str) -> None:
    """Print a profile's files."""
    from yue_core.weights.files import manifest

    for file in manifest().of(profile):
        about = " " if file.bytes else "~"
        digest = (file.sha256 or f"(from {file.sha256_from})")[:12]
        print(f"{about}{file.expected_bytes:>14,}  {digest:<12}  {file.repo}@{file.revision[:8]}/{file.path}")


def check(profile: str, root: Path) -> None:
    """Hash every file; raises WeightsError for the first that is wrong."""
    from yue_core.weights.check import faults

    if profile == "tiny":
        return
    wrong = faults(profile, root, deep=True)
    for target, words in wrong.items():
        print(f"{target} {words}")
    if wrong:
        raise WeightsError(f"{len(wrong)} files are not as they should be; run scripts/weights fetch {profile}.")
    print(f"Profile {profile} is complete and sound in {root}.")


def bench(gigabytes: float) -> None:
    """Fetch and check one file from a server on this machine; print MB/s beside those of sha256sum."""
    from yue_core.weights import files
    from yue_core.weights.fetch import download

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        served, digest = folder / "org/model/resolve/main/file", hashlib.sha256()
        served.parent.mkdir(parents=True)
        block, blocks = os.urandom(10_000_000), round(gigabytes * 100)
        with served.open("wb") as file:
            for _ in range(blocks):
                file.write(block)
                digest.update(block)
        size = blocks * len(block)
        os.environ |= {"YUE_WEIGHTS_URL": _serve(folder), "NO_PROXY": "127.0.0.1"}
        listed = files.WeightFile(
            "huggingface", "org/model", "main", "file", size, digest.hexdigest(), "none", "stage2", "fetched"
        )

        def sum_only() -> None:
            subprocess.run(["sha256sum", str(served)], check=True, stdout=subprocess.DEVNULL)

        def fetch_and_check() -> None:
            download(listed, folder / "fetched", lambda _: None)
            (folder / "fetched").unlink()

        runs = [(_speed(sum_only, size), _speed(fetch_and_check, size)) for _ in range(ROUNDS)]
    reference, speed = (median(speeds) for speeds in zip(*runs, strict=True))
    print(f"sha256sum        {reference:6.0f} MB/s  (median of {ROUNDS} rounds)")
    print(f"fetch and check  {speed:6.0f} MB/s, {speed / reference:.0%} of it")


def _speed(action: Callable[[], None], size: int) -> float:
    """MB/s of something that takes in `size` bytes."""
    started = time.perf_counter()
    action()
    return size / (time.perf_counter() - started) / 1e6


def _serve(folder: Path) -> str:
    """Serve a folder from a process of its own until this one ends; returns its address."""
    command = [sys.executable, "-u", "-m", "http.server", "0", "--bind", "127.0.0.1", "--directory", str(folder)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert server.stdout is not None
    port = server.stdout.readline().split(" port ")[1].split()[0]

    def stop_with_us() -> None:
        threading.main_thread().join()
        server.kill()

    threading.Thread(target=stop_with_us).start()
    return f"http://127.0.0.1:{port}"


if __name__ == "__main__":
    sys.exit(main())
