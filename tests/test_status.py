"""The status page, as its three users see it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from fastjob._core.status import StatusPage


def test_a_slot_has_ended_when_its_worker_was_reaped_or_never_born():
    page = StatusPage()
    page.clear(0)
    page.clear(1)
    assert not page.ended(0)
    page.born(0, 123)
    assert not page.ended(0)
    page.exited(0, 9, 1000)
    page.failed(1, 11)
    assert page.ended(0) and page.ended(1)
    page.clear(0)
    assert not page.ended(0)


@pytest.mark.parametrize("number", [-1, 4096, 10**6])
def test_a_slot_outside_of_the_page_is_refused(number):
    with pytest.raises(IndexError, match=str(number)):
        StatusPage().clear(number)


def test_another_process_sees_the_same_page():
    page = StatusPage()
    page.clear(5)
    subprocess.run(
        [
            sys.executable,
            "-c",
            "from fastjob._core.status import StatusPage\n"
            f"StatusPage({page.fd}).exited(5, 0, 1)",
        ],
        pass_fds=[page.fd],
        check=True,
    )
    assert page.ended(5)


def test_a_descriptor_that_cannot_be_mapped_is_an_error():
    read, write = os.pipe()
    with pytest.raises(OSError, match="status page"):
        StatusPage(read)
    os.close(write)


def test_a_process_whose_parent_has_died_already_is_told():
    source = (
        "import os\n"
        "from fastjob._core.status import die_with_parent\n"
        "print(die_with_parent(os.getppid()), die_with_parent(1 << 22))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", source], capture_output=True, text=True, check=True
    )
    assert done.stdout == "True False\n"
