"""The peers' own virtual environment, made on demand: their dependencies never mix with ours."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ENVIRONMENT = HERE / ".venv-peers"
PYTHON = ENVIRONMENT / "bin" / "python"
REQUIREMENTS = HERE / "peers" / "requirements.txt"


def ensure() -> None:
    """Install what ``peers/requirements.txt`` names, unless it is there already."""
    stamp, wanted = ENVIRONMENT / ".installed", hashlib.sha256(REQUIREMENTS.read_bytes()).hexdigest()
    if stamp.exists() and stamp.read_text() == wanted:
        return
    if uv := shutil.which("uv"):
        subprocess.run([uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(ENVIRONMENT)], check=True)
        subprocess.run([uv, "pip", "install", "--quiet", "-p", str(PYTHON), "-r", str(REQUIREMENTS)], check=True)
    else:
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(ENVIRONMENT)], check=True)
        subprocess.run([str(PYTHON), "-m", "pip", "install", "-qq", "-r", str(REQUIREMENTS)], check=True)
    stamp.write_text(wanted)


def versions() -> dict[str, str]:
    """What is asked for, name by name."""
    return dict(line.split("==") for line in REQUIREMENTS.read_text().split() if "==" in line)
