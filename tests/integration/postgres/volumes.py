"""A disk of its own for a server: a file system in an image, which fills up, hangs, and loses its power. For root, on Linux."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import struct
import subprocess
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

_MIB: Final = 2**20
_BUSY_S: Final = 20.0
_FREEZE: Final = 0xC0045877  # FIFREEZE
_THAW: Final = 0xC0045878  # FITHAW
_SHUT_DOWN: Final = 0x8004587D  # EXT4_IOC_SHUTDOWN
_AT_ONCE: Final = struct.pack("I", 2)  # EXT4_GOING_FLAGS_NOLOGFLUSH: not even the journal goes to the disk any more


class VolumeError(Exception):
    """This machine does not do what was asked of it."""


class Volume:
    """The file system, mounted.

    Attributes:
        path: Where.
        is_frozen: Whether writes wait.
    """

    def __init__(self, image: Path, path: Path) -> None:
        self._image = image
        self.path = path
        self.is_frozen = False

    def mount(self) -> None:
        _run("mount", "-o", "loop", str(self._image), str(self.path))

    def unmount(self) -> None:
        """Whoever was killed may take a moment to let go of its files."""
        deadline = time.monotonic() + _BUSY_S
        while True:
            try:
                return _run("umount", str(self.path))
            except VolumeError as error:
                if "busy" not in str(error) or time.monotonic() > deadline:
                    raise

    def sync(self) -> None:
        """Have on the disk what was written until now."""
        _run("sync", "--file-system", str(self.path))

    def fill(self) -> None:
        """Leave no room on it."""
        with self._filler.open("wb", buffering=0) as file:
            for size in (_MIB, 1024):
                while _reserved(file.fileno(), size):
                    pass

    def free(self) -> None:
        """Make room again."""
        self._filler.unlink()

    @property
    def _filler(self) -> Path:
        return self.path / "filler"

    def freeze(self) -> None:
        """Have whatever is to be written wait until `thaw`."""
        self._control(_FREEZE)
        self.is_frozen = True

    def thaw(self) -> None:
        self._control(_THAW)
        self.is_frozen = False

    def lose_power(self) -> None:
        """From now on nothing gets to the disk, and what had not is lost. Whoever tries is told of an I/O error."""
        self._control(_SHUT_DOWN, _AT_ONCE)

    def power_on(self) -> None:
        """Mount it again as it was left, for which nobody may use it."""
        self.unmount()
        self.mount()

    def _control(self, request: int, argument: bytes = b"\0\0\0\0") -> None:
        folder = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.ioctl(folder, request, argument)
        finally:
            os.close(folder)


def _reserved(file: int, more: int) -> bool:
    try:
        os.posix_fallocate(file, os.fstat(file).st_size, more)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        return False
    return True


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise VolumeError(f"{' '.join(command)}: {done.stderr}")


@contextmanager
def volume(mebibytes: int) -> Iterator[Volume]:
    """A new one, for as long as the block lasts. Whoever uses it has to have ended by then."""
    folder = Path(tempfile.mkdtemp(prefix="ewe-volume-"))
    folder.chmod(0o755)  # PostgreSQL is another user
    image, path = folder / "image", folder / "mounted"
    path.mkdir()
    with image.open("wb") as file:
        file.truncate(mebibytes * _MIB)
    _run("mkfs.ext4", "-q", "-m", "0", str(image))
    made = Volume(image, path)
    made.mount()
    try:
        yield made
    finally:
        made.unmount()
        shutil.rmtree(folder)
