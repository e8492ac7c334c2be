"""tools/system_packages.sh on pretended machines: what it installs, what it says, and how it waits for others."""

import shutil
import subprocess
from pathlib import Path

from places import REPOSITORY

SYSTEM = REPOSITORY / "tools" / "system_packages.sh"


def system_packages(argument: str, folder: Path, *, user: int, installed: str) -> subprocess.CompletedProcess:
    """Run tools/system_packages.sh on a pretended machine where only the stand-ins in `folder` are commands."""
    programs = {
        "dpkg-query": f"echo '{installed}'",
        "id": f"echo {user}",
        "apt-get": 'echo "apt-get $*" >> record; test ! -s held || { read -r line < held; echo "$line" >&2; exit 1; }',
        "sleep": ": > held",  # who held a lock lets go of it
        "apt-cache": 'test "$2" != xauth',
    }
    for name, body in programs.items():
        (folder / name).write_text(f"#!/bin/sh\n{body}\n")
        (folder / name).chmod(0o755)
    return run_system_packages(argument, folder)


def run_system_packages(argument: str, folder: Path) -> subprocess.CompletedProcess:
    command = [shutil.which("bash"), str(SYSTEM), argument]
    return subprocess.run(command, cwd=folder, env={"PATH": str(folder)}, capture_output=True, text=True)


def test_system_installs_what_is_missing_as_root(tmp_path: Path) -> None:
    run = system_packages("install", tmp_path, user=0, installed="xvfb=installed xauth=config-files ")
    first, second = (tmp_path / "record").read_text().splitlines()
    assert first.startswith("apt-get update -qq -o DPkg::Lock::Timeout=")
    assert second.startswith("apt-get install -y") and " chromium" in second and " xvfb" not in second
    # The pretended distribution has no package xauth: the others are installed and the gap is named.
    assert " xauth" not in second and "no package named xauth" in run.stdout and run.returncode == 1


def test_apt_is_asked_again_once_others_have_ended(tmp_path: Path) -> None:
    (tmp_path / "held").write_text("E: Could not get lock /var/lib/apt/lists/lock. It is held by process 7 (apt-get)\n")
    run = system_packages("install", tmp_path, user=0, installed="xauth=config-files ")
    calls = [line.split()[1] for line in (tmp_path / "record").read_text().splitlines()]
    assert calls == ["update", "update", "install"]
    assert "held by process 7" in run.stderr and "asking again in 5 seconds" in run.stderr


def test_what_apt_cannot_do_is_not_asked_twice(tmp_path: Path) -> None:
    (tmp_path / "held").write_text("E: The repository has no Release file\n")
    run = system_packages("install", tmp_path, user=0, installed="")
    assert run.returncode == 1 and "no Release file" in run.stderr
    assert len((tmp_path / "record").read_text().splitlines()) == 1


def test_system_prints_the_command_for_others(tmp_path: Path) -> None:
    run = system_packages("install", tmp_path, user=1000, installed="xvfb=installed ")
    assert run.returncode == 1 and not (tmp_path / "record").exists()
    assert "sudo apt-get update && sudo apt-get install --no-install-recommends xauth " in run.stdout


def test_make_test_goes_on_without_system_libraries(tmp_path: Path) -> None:
    run = system_packages("install-if-root", tmp_path, user=1000, installed="xvfb=installed ")
    assert run.returncode == 0 and "missing: xauth " in run.stdout and "Going on without them" in run.stdout


def test_system_without_apt_says_so(tmp_path: Path) -> None:
    run = run_system_packages("install", tmp_path)
    assert run.returncode == 1 and "this machine has no apt-get" in run.stdout and "libegl1" in run.stdout


def test_nothing_missing_is_silent_in_make_test(tmp_path: Path) -> None:
    listed = system_packages("missing", tmp_path, user=1000, installed="").stdout.split()
    everything = "".join(f"{name}=installed " for name in listed)
    run = system_packages("install-if-root", tmp_path, user=1000, installed=everything)
    assert len(listed) > 10 and run.returncode == 0 and run.stdout + run.stderr == ""
