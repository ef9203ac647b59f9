"""scripts/bootstrap.sh on a copy of the project whose requirement files are empty, so that nothing is downloaded."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TOOLS = "bash env dirname readlink cmp cp cat mkdir rm head"


def new_project(folder: Path) -> Path:
    """A project with one script that shows which Python runs it."""
    scripts = folder / "scripts"
    scripts.mkdir(parents=True)
    shutil.copy(ROOT / "scripts" / "bootstrap.sh", scripts)
    script(
        scripts / "probe",
        'set -euo pipefail\nsource "$(dirname "$(readlink -f "$0")")/bootstrap.sh"\n'
        'exec "$PYTHON" -P -c "import sys; print(sys.prefix, *sys.argv[1:])" "$@"',
    )
    for name in ("requirements.txt", "requirements-dev.txt"):
        (folder / name).write_text("# nothing\n")
    return folder


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project that was never run."""
    return new_project(tmp_path / "project")


@pytest.fixture(scope="module")
def first_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A project after its first run."""
    folder = new_project(tmp_path_factory.mktemp("scripts") / "project")
    path = os.pathsep.join([str(Path(sys._base_executable).parent), "/usr/bin", "/bin"])
    return folder, probe(folder, path, "a word", "another")


@pytest.fixture
def prepared(first_run: tuple[Path, object], tmp_path: Path) -> Path:
    """A copy of it."""
    return shutil.copytree(first_run[0], tmp_path / "project", symlinks=True)


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """A folder for PATH that holds the shell's tools and no Python."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in TOOLS.split():
        (folder / name).symlink_to(shutil.which(name))
    return folder


def script(path: Path, text: str) -> None:
    path.write_text(f"#!/usr/bin/env bash\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def fake_python(path: Path, refused: str) -> None:
    """A Python that fails at code which holds `refused`."""
    real = sys._base_executable
    script(path, f'[[ "${{2:-}}" == *{refused}* ]] && exit 1\nexec {real} "$@"')


def probe(project: Path, programs: Path | str, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    command = [str(project / "scripts" / "probe"), *arguments]
    environment = {"PATH": str(programs), "HOME": str(project), **settings}
    return subprocess.run(command, env=environment, cwd="/", text=True, capture_output=True)


def test_the_first_run_makes_an_environment_and_the_next_ones_do_not(first_run, prepared, programs):
    folder, first = first_run
    assert first.returncode == 0, first.stderr
    assert first.stdout == f"{folder / '.venv'} a word another\n"
    assert "First run: making" in first.stderr
    for name in ("mkdir", "rm", "cp"):  # what only an installation needs; nor is there a python3 on PATH
        (programs / name).unlink()
    second = probe(prepared, programs, "again")
    assert (second.returncode, second.stdout, second.stderr) == (0, f"{prepared / '.venv'} again\n", "")


def test_changed_pins_and_the_test_tools_are_installed(prepared, programs):
    (programs / "python3").symlink_to(sys._base_executable)
    assert not (prepared / ".venv" / "installed-requirements-dev.txt").exists()
    (prepared / "requirements.txt").write_text("# changed\n")
    again = probe(prepared, programs, YUE_DEV="1")
    assert "Installing the pinned packages" in again.stderr
    for name in ("requirements.txt", "requirements-dev.txt"):
        assert (prepared / ".venv" / f"installed-{name}").read_text() == (prepared / name).read_text()


def test_an_installation_that_fails_is_told_and_tried_again(prepared, programs):
    (programs / "python3").symlink_to(sys._base_executable)
    (prepared / "requirements.txt").write_text("./nowhere\n")
    failed = probe(prepared, programs)
    assert failed.returncode == 1
    assert "check the network and run the same command again" in failed.stderr
    (prepared / "requirements.txt").write_text("# nothing new\n")
    assert probe(prepared, programs).returncode == 0


def test_a_broken_environment_is_made_again(prepared, programs):
    (programs / "python3").symlink_to(sys._base_executable)
    python = prepared / ".venv" / "bin" / "python"
    python.unlink()
    python.symlink_to("/nowhere/python")
    again = probe(prepared, programs)
    assert again.returncode == 0, again.stderr
    assert "First run: making" in again.stderr


def test_two_at_once_install_once(project, programs):
    (programs / "python3").symlink_to(sys._base_executable)
    command, environment = [str(project / "scripts" / "probe")], {"PATH": str(programs)}
    both = [
        subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for _ in range(2)
    ]
    results = [process.communicate() for process in both]
    assert [process.returncode for process in both] == [0, 0], results
    assert sum("First run: making" in errors for _, errors in results) == 1


@pytest.mark.parametrize(
    ("name", "refused", "sentence"),
    [
        (None, "", "Python 3.11, 3.12 or 3.13 is needed, and none was found"),
        ("python3", "sys.version_info", "Python 3.11, 3.12 or 3.13 is needed, and Python 3.1"),
        ("python3.13", "ensurepip", "python3.13 cannot make virtual environments; run: sudo apt-get install python3.1"),
    ],
)
def test_without_a_suitable_python_one_sentence_says_what_to_install(project, programs, name, refused, sentence):
    if name:
        fake_python(programs / name, refused)
    shown = probe(project, programs)
    assert (shown.returncode, shown.stdout) == (1, "")
    assert shown.stderr.startswith(sentence)
    assert "apt-get install" in shown.stderr
    assert shown.stderr.count("\n") == 1


def test_an_older_python3_is_passed_over(prepared, programs):
    fake_python(programs / "python3", "sys.version_info")
    (programs / "python3.12").symlink_to(sys._base_executable)
    (prepared / "requirements.txt").write_text("# changed\n")
    assert probe(prepared, programs).returncode == 0


def test_every_script_starts_from_any_folder_and_is_executable():
    for path in (ROOT / "scripts").iterdir():
        text = path.read_text()
        if path.name == "bootstrap.sh":
            continue
        assert os.access(path, os.X_OK), path
        assert 'source "$(dirname "$(readlink -f "$0")")/bootstrap.sh"' in text, path
