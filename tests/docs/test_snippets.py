"""Every program in the documentation runs, and prints what the page says. How blocks are marked: `pages.py`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.docs.pages import ROOT, PageError, blocks, matches, run_page

if TYPE_CHECKING:
    from pathlib import Path

PAGES = sorted(
    path for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")) if blocks(path.read_text(encoding="utf-8"))
)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("page", PAGES, ids=[path.relative_to(ROOT).as_posix() for path in PAGES])
def test_the_programs_of_a_page_run(page: Path, tmp_path: Path) -> None:
    run_page(page.read_text(encoding="utf-8"), tmp_path)


GREETING = '<!-- file: greeting.py -->\n```python\nWORD = "hello"\n```\n'


def test_later_blocks_import_the_files_of_earlier_ones(tmp_path: Path) -> None:
    page = GREETING + '\n```python\nfrom greeting import WORD\nassert WORD == "hello"\n```\n'
    assert run_page(page, tmp_path) == 2


def test_blocks_in_lists_and_tabs_are_found(tmp_path: Path) -> None:
    assert run_page("- a list:\n\n    ```python\n    if True:\n        x = 1\n    ```\n", tmp_path) == 1


def test_a_test_file_is_run_by_pytest(tmp_path: Path) -> None:
    test = "async def test_it() -> None:\n    assert {}\n"
    mark = "<!-- file: test_it.py -->\n```python\n"
    assert run_page(mark + test.format("True") + "```\n", tmp_path) == 1
    with pytest.raises(PageError, match=r"test_it\.py ended with 1"):
        run_page(mark + test.format("False") + "```\n", tmp_path)


@pytest.mark.parametrize(
    ("page", "message"),
    [
        ("text\n\n```python\n1 / 0\n```\n", "line 3: block_3.py ended with 1"),
        ("<!-- file: broken.py -->\n```python\n1 / 0\n```\n", "broken.py ended with 1"),
        ("<!-- file: main.py -->\n```python\nif __name__ == '__main__':\n    1 / 0\n```\n", "main.py ended with 1"),
        ("<!-- no-run: it needs a broker -->\n```python\nif\n```\n", "invalid syntax"),
        ("<!-- no-run -->\n```python\nx = 1\n```\n", "needs a reason"),
        ("<!-- run -->\n```console\nno command\n```\n", "begins with"),
        ("<!-- run -->\n```console\n$ false\n```\n", "`false` ended with 1"),
        ("<!-- run -->\n```console\n$ echo one\ntwo\n```\n", "the page shows\ntwo"),
    ],
)
def test_a_page_that_is_wrong_fails(page: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(PageError) as failure:
        run_page(page, tmp_path)
    assert message in str(failure.value)


def test_a_block_that_is_not_run_is_still_saved(tmp_path: Path) -> None:
    page = "<!-- file: server.py, no-run: it would serve for ever -->\n```python\nraise SystemExit(3)\n```\n"
    assert run_page(page, tmp_path) == 1
    assert (tmp_path / "server.py").exists()


def test_commands_are_run_and_compared(tmp_path: Path) -> None:
    page = (
        GREETING
        + '<!-- run -->\n```console\n$ python -c "import greeting; print(greeting.WORD)"\nhello\n$ seq 4\n1\n…\n4\n```\n'
    )
    assert run_page(page, tmp_path) == 2
    killed = "<!-- run, exit: 137 -->\n```console\n$ bash -c 'kill -9 $$'; exit $?\n```\n"
    assert run_page(killed, tmp_path) == 1


def test_dots_stand_for_any_lines() -> None:
    assert matches(["…", "end"], "a\nb\nend\n")
    assert matches(["…"], "")
    assert not matches(["…", "end"], "a\nb\n")
