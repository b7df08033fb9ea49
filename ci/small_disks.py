"""Disks for the stress run that are small, and full at random.

They are mounted where only this process and its children see them, which needs Linux
and leave to make a namespace.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

#: Megabytes; the last one, the system's temporary folder, is the last resort.
SIZES = {"named": 8, "shm": 8, "temporary": 32}
VARIABLE = "STRESS_DISKS"


def enter() -> Disks | None:
    """Run this program again where there are small disks; None if there can be none."""
    if VARIABLE in os.environ:
        return Disks(Path(os.environ[VARIABLE]))
    for user in ([], ["--user", "--map-root-user"]):
        inside = ["unshare", *user, "--mount", "--propagation", "private"]
        mount = [*inside, "mount", "-t", "tmpfs", "tmpfs", "/dev/shm"]
        if (
            shutil.which("unshare")
            and not subprocess.run(mount, check=False, capture_output=True).returncode
        ):
            root = tempfile.mkdtemp(prefix="stress-")
            try:
                command = [*inside, sys.executable, *sys.argv]
                environ = {**os.environ, VARIABLE: root}
                sys.exit(subprocess.run(command, env=environ, check=False).returncode)
            finally:
                shutil.rmtree(root)
    return None


class Disks:
    """The small disks of this process."""

    def __init__(self, root: Path) -> None:
        self.folders = {"shm": Path("/dev/shm")}
        for name in ("named", "temporary"):
            self.folders[name] = root / name
            self.folders[name].mkdir()
        for name, size in SIZES.items():
            where = str(self.folders[name])
            subprocess.run(
                ["mount", "-t", "tmpfs", "-o", f"size={size}m", "tmpfs", where],
                check=True,
            )
        os.environ["TMPDIR"] = str(self.folders["temporary"])
        tempfile.tempdir = None

    def toggle(self, choose) -> None:
        """Fill one of the disks, or let it have room again."""
        folder = self.folders[choose.choice(sorted(self.folders))]
        filler = folder / "filler"
        if filler.exists():
            filler.unlink()
            return
        free = os.statvfs(folder)
        left = choose.choice([0, 100_000, 1_000_000])
        with filler.open("wb") as file:
            try:
                size = max(1, free.f_bavail * free.f_frsize - left)
                os.posix_fallocate(file.fileno(), 0, size)
            except OSError:
                pass  # something else took the room meanwhile: the disk is full

    def leftovers(self) -> list[str]:
        """Files that a run has left."""
        return [
            str(path)
            for folder in self.folders.values()
            for path in folder.rglob("*")
            if path.name != "filler"
        ]
