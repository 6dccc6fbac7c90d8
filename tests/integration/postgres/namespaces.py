"""Hosts of their own on this machine: network namespaces at one bridge, each with a cable that can be pulled. For root."""

from __future__ import annotations

import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING
from uuid import uuid4

if TYPE_CHECKING:
    import random
    from collections.abc import Iterator


class Host:
    """One namespace.

    Attributes:
        via: What a command begins with that runs there.
        cable: The end of its cable that is here.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.via = ("ip", "netns", "exec", name)
        self.cable = f"{name}o"

    def lay_cable(self, bridge: str, address: str) -> None:
        ip("netns", "add", self.name)
        ip("link", "add", self.cable, "type", "veth", "peer", "name", "eth0", "netns", self.name)
        ip("link", "set", self.cable, "master", bridge, "up")
        ip("-n", self.name, "address", "add", f"{address}/24", "dev", "eth0")
        ip("-n", self.name, "link", "set", "eth0", "up")

    def pull(self) -> None:
        """From now on nothing gets there or away, and neither side is told."""
        ip("link", "set", self.cable, "down")

    def plug(self) -> None:
        ip("link", "set", self.cable, "up")


def ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"ip {' '.join(arguments)}: {done.stderr}"


@contextmanager
def hosts(number: int, rng: random.Random) -> Iterator[tuple[str, list[Host]]]:
    """So many hosts, and the address of this machine at which they reach it."""
    name = f"ewe{uuid4().hex[:6]}"
    net = f"198.18.{rng.randrange(256)}"  # set aside for measuring networks, so nobody else's
    made = [Host(f"{name}{n}") for n in range(number)]
    bridge = f"{name}b"
    try:
        ip("link", "add", bridge, "type", "bridge")
        ip("address", "add", f"{net}.1/24", "dev", bridge)
        ip("link", "set", bridge, "up")
        for n, host in enumerate(made):
            host.lay_cable(bridge, f"{net}.{n + 2}")
        yield f"{net}.1", made
    finally:
        # The cables first: a namespace lasts as long as a process in it, and so would its cable.
        links, names = [*(host.cable for host in made), bridge], [host.name for host in made]
        for command in (*(("link", "delete", one) for one in links), *(("netns", "delete", one) for one in names)):
            subprocess.run(["ip", *command], capture_output=True, check=False)
