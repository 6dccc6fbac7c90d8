"""The examples in docstrings are true."""

from __future__ import annotations

import doctest
import importlib

import pytest
from tests.house.sources import SRC, package_modules

WITH_EXAMPLES = [
    ".".join(module.path.relative_to(SRC).with_suffix("").parts).removesuffix(".__init__")
    for module in package_modules()
    if ">>> " in module.text
]


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_the_examples_of_a_module_are_true(name: str, tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(str(tmp_path))  # an example may open a store by a relative path
    failed, tried = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert tried
    assert not failed
