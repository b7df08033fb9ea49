"""The examples of the README and of ``docs/`` run, and print what they say.

The ``python`` blocks of a page are one script, run by a fresh interpreter as a user
would run it: top level, no main guard. A ``text`` block right after a ``python`` block
is what that block prints, where ``...`` stands for anything. Code that needs more than
fastjob itself is in ``py`` blocks, which are only compiled.
"""

from __future__ import annotations

import doctest
import re
from pathlib import Path
from typing import NamedTuple

import pytest

import fastjob

CHECKOUT = Path(__file__).parents[1]
PAGES = [CHECKOUT / "README.md", *sorted((CHECKOUT / "docs").glob("*.md"))]
FENCE = re.compile(
    r"^```(?P<kind>[\w{}+-]*)[^\n]*\n(?P<body>.*?)^```$", re.DOTALL | re.MULTILINE
)
SEPARATOR = "=-=-= next block =-=-="


class Example(NamedTuple):
    source: str
    prints: str | None


def blocks(page: Path) -> list[tuple[str, str, str]]:
    """Kind, body, and the prose before it, of each fenced block of a page."""
    text = page.read_text(encoding="utf-8")
    found, end = [], 0
    for match in FENCE.finditer(text):
        found.append((match["kind"], match["body"], text[end : match.start()]))
        end = match.end()
    return found


def examples(page: Path) -> list[Example]:
    found: list[Example] = []
    previous = ""
    for kind, body, prose in blocks(page):
        if kind == "python":
            found.append(Example(body, None))
        elif kind == "text" and previous == "python" and not prose.strip():
            found[-1] = found[-1]._replace(prints=body)
        previous = kind
    return found


WITH_EXAMPLES = [page for page in PAGES if examples(page)]


def test_the_pages_have_examples():
    assert len(WITH_EXAMPLES) >= 6
    assert sum(e.prints is not None for p in WITH_EXAMPLES for e in examples(p)) >= 10


@pytest.mark.parametrize("page", WITH_EXAMPLES, ids=lambda page: page.stem)
def test_the_examples_of_a_page_run_and_print_what_it_says(page, run_python):
    wanted = examples(page)
    script = f"\nprint({SEPARATOR!r}, flush=True)\n".join(e.source for e in wanted)
    done = run_python(script)
    assert done.returncode == 0, done.stderr
    printed = done.stdout.split(SEPARATOR + "\n")
    for example, output in zip(wanted, printed, strict=True):
        if example.prints is not None:
            same = doctest.OutputChecker().check_output(
                example.prints, output, doctest.ELLIPSIS
            )
            assert same, f"{example.source}\nprints\n{output}\nnot\n{example.prints}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_code_that_is_not_run_is_valid(page):
    for kind, body, _ in blocks(page):
        if kind == "py":
            compile(body, page.name, "exec")


def test_every_public_name_is_in_the_reference():
    reference = (CHECKOUT / "docs" / "api.md").read_text(encoding="utf-8")
    listed = re.findall(r"^   (\w+)$", reference, re.MULTILINE)
    assert sorted(listed) == sorted(set(fastjob.__all__) - {"__version__"})


def test_every_page_is_in_the_table_of_contents():
    index = (CHECKOUT / "docs" / "index.md").read_text(encoding="utf-8")
    pages = {page.stem for page in PAGES if page.parent.name == "docs"} - {"index"}
    trees = re.findall(r":::\{toctree\}\n(?::[^\n]*\n)*\n(.*?):::", index, re.DOTALL)
    assert sorted(" ".join(trees).split()) == sorted(pages)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_links_between_pages_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    targets = re.findall(r"\]\((?!https?:|#)([^)#\s]+)", text)
    missing = [name for name in targets if not (page.parent / name).exists()]
    assert missing == []
