"""What `make` installs: each target what it needs, once."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from tests.house.sources import ROOT

if TYPE_CHECKING:
    from pathlib import Path

INSTALLER = """\
#!/bin/sh
echo "$@" >> installed
mkdir -p .venv/bin
printf '#!/bin/sh\\n' > .venv/bin/ewe
cp .venv/bin/ewe .venv/bin/python
chmod +x .venv/bin/ewe .venv/bin/python
"""
"""It stands for uv, whose packages come over the network."""

ALL = "sync --frozen --python {python}"
RUNTIME = f"{ALL} --no-dev --inexact"


class Clone:
    """A folder with what make reads, and an installer that writes down what it was asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("Makefile", "pyproject.toml", "uv.lock"):
            shutil.copy(ROOT / name, folder)
        (folder / "path").mkdir()
        installer = folder / "path" / "uv"
        installer.write_text(INSTALLER)
        installer.chmod(0o755)

    def make(self, *targets: str) -> None:
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
        environment["PATH"] = f"{self.folder / 'path'}:{os.environ['PATH']}"
        subprocess.run(["make", f"PYTHON={sys.executable}", *targets], cwd=self.folder, env=environment, check=True)

    def installed(self) -> list[str]:
        """What was installed since the last look."""
        log = self.folder / "installed"
        if not log.exists():
            return []
        lines = log.read_text().replace(sys.executable, "{python}").splitlines()
        log.unlink()
        return lines


@pytest.fixture
def clone(tmp_path: Path) -> Clone:
    return Clone(tmp_path)


def test_the_demo_installs_nothing_that_only_developers_need(clone: Clone) -> None:
    clone.make("demo")
    assert clone.installed() == [RUNTIME]
    clone.make("demo")
    assert clone.installed() == []


def test_the_tests_install_the_rest_after_a_demo(clone: Clone) -> None:
    clone.make("demo")
    clone.installed()
    clone.make("test")
    assert clone.installed() == [ALL]
    clone.make("test", "demo")
    assert clone.installed() == []


def test_each_follows_the_lock_file_and_a_demo_does_not_pass_for_the_rest(clone: Clone) -> None:
    clone.make("test")
    assert clone.installed() == [ALL]
    clone.make("demo")
    assert clone.installed() == [], "it is among the rest"
    for stamp in (".synced", ".synced-runtime"):
        os.utime(clone.folder / ".venv" / stamp, (0, 0))  # older than the lock file
    clone.make("demo")
    assert clone.installed() == [RUNTIME]
    clone.make("test")
    assert clone.installed() == [ALL]
