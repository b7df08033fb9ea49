"""Calls on a real dask cluster: a scheduler and two worker processes."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import leaks
import numpy as np
import pytest
from cluster_tasks import ClusterTests, pid, square, wait_for

from fastjob import Parallel, delayed
from fastjob.backends import cluster as engine
from fastjob.errors import ClusterError, TerminatedWorkerError

dask = pytest.importorskip("dask")
distributed = pytest.importorskip("distributed")
fastjob_dask = pytest.importorskip("fastjob.backends.dask")
pytestmark = [
    pytest.mark.dask,
    # dask's own: it tells of what it finds slow, and closes some things by collection.
    pytest.mark.filterwarnings("default:::distributed"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

# What dask makes once and keeps: threads until the interpreter ends, its folder.
STANDING = ("thread 'Dask-", "thread 'ThreadPoolExecutor", "thread 'Profile")
FOLDER = "dask-scratch-space"


def start(n_workers=2, threads_per_worker=1, **options):
    return distributed.LocalCluster(
        n_workers=n_workers,
        threads_per_worker=threads_per_worker,
        processes=True,
        dashboard_address=None,
        **options,
    )


@pytest.fixture(scope="module", autouse=True)
def nothing_left_behind_by_module(temp_folder):
    before = leaks.Snapshot.take()
    yield
    # Each of dask's standing threads is waited for that long.
    found = leaks.left_behind(before, pool_may_stay=False, grace=1)
    found = [f for f in found if not f.startswith((*STANDING, "file descriptor"))]
    assert not [f for f in found if not f.endswith(FOLDER)]


@pytest.fixture(autouse=True)
def nothing_left_behind(temp_folder):
    """The cluster stays from test to test; see the module's own check."""


@pytest.fixture(scope="module")
def client(nothing_left_behind_by_module, tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("dask"))
    with start(local_directory=folder) as cluster, distributed.Client(cluster) as one:
        yield one


@pytest.fixture(autouse=True)
def two_workers(request):
    """Dask starts another worker in the place of one that a test has killed."""
    if "client" in request.fixturenames:
        request.getfixturevalue("client").wait_for_workers(2, timeout=30)


@pytest.mark.usefixtures("client")
class TestDask(ClusterTests):
    backend = "dask"


def test_n_jobs_is_the_number_of_threads(client):
    runner = Parallel(n_jobs=-1, backend="dask")
    assert runner._effective_n_jobs() == 2
    assert Parallel(n_jobs=5, backend="dask")._effective_n_jobs() == 5


def test_submit_options_reach_dask(client):
    address = next(iter(client.nthreads()))
    runner = Parallel(backend="dask", submit_options={"workers": [address]})
    assert len(set(runner(delayed(pid)(i) for i in range(20)))) == 1


def test_without_a_client_the_message_shows_how_to_make_one(run_python):
    done = run_python(
        "from fastjob import Parallel, delayed\n"
        "Parallel(backend='dask')([delayed(abs)(1)] * 2)"
    )
    assert "ValueError: backend='dask' needs a client" in done.stderr
    assert "client = Client()" in done.stderr


def total(array, x):
    return float(array.sum()) + x


def test_a_large_common_argument_is_scattered_once_by_itself(client):
    def arrays():
        new = set(client.who_has()) - before
        return {key for key in new if key.startswith("ndarray")}

    before = set(client.who_has())
    array = np.ones(1 << 18)
    runner = Parallel(n_jobs=2, backend="dask", batch_size=1, return_as="generator")
    stream = runner(delayed(total)(array, i) for i in range(40))
    assert [next(stream) for _ in range(20)] == [(1 << 18) + i for i in range(20)]
    scattered = arrays()
    # On how many workers it lies is dask's: it drops copies that nobody waits for.
    assert len(scattered) == 1
    assert list(stream) == [(1 << 18) + i for i in range(20, 40)]
    # Tasks that carry their arguments themselves leave no arrays on the cluster.
    runner = Parallel(
        n_jobs=2,
        backend="dask",
        batch_size=1,
        max_nbytes=None,
        return_as="generator",
    )
    stream = runner(delayed(total)(array, i) for i in range(40))
    next(stream)
    assert arrays() <= scattered
    stream.close()


def test_two_clients_at_once(client, tmp_path):
    with (
        start(1, local_directory=str(tmp_path)) as cluster,
        distributed.Client(cluster, set_as_default=False) as other,
    ):
        here = Parallel(n_jobs=2, backend="dask", client=client, return_as="generator")
        there = Parallel(n_jobs=2, backend="dask", client=other, return_as="generator")
        streams = [
            runner(delayed(pid)(i) for i in range(20)) for runner in (here, there)
        ]
        pairs = list(zip(*streams, strict=True))
    assert not {a for a, _ in pairs} & {b for _, b in pairs}


def test_no_worker_in_time_is_an_error(tmp_path):
    with (
        start(0, local_directory=str(tmp_path)) as cluster,
        distributed.Client(cluster) as other,
    ):
        runner = Parallel(
            n_jobs=2, backend="dask", client=other, wait_for_workers_timeout=0.1
        )
        with pytest.raises(ClusterError, match="none came in"):
            runner([delayed(square)(1)] * 3)


def test_a_cluster_that_loses_all_its_workers_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "CHECK_SECONDS", 0.05)
    monkeypatch.setattr(engine, "ASK_SECONDS", 0.0)
    with (
        start(1, local_directory=str(tmp_path)) as cluster,
        distributed.Client(cluster, set_as_default=False) as other,
    ):

        def tasks():
            yield delayed(square)(1)
            for number in range(9):
                if number == 3:
                    cluster.scale(0)
                yield delayed(wait_for)(str(tmp_path / "no"))

        runner = Parallel(
            n_jobs=2,
            backend="dask",
            client=other,
            batch_size=1,
            wait_for_workers_timeout=0.5,
        )
        with pytest.raises(
            ClusterError, match="lost all its workers, and none came in"
        ):
            runner(tasks())


def test_workers_are_asked_for_only_while_there_is_a_scheduler(client, monkeypatch):
    def silent():
        raise TimeoutError

    transport = fastjob_dask.DaskTransport(client, 2, {}, 10.0)
    assert transport._ask_workers() == ""
    monkeypatch.setattr(client, "nthreads", silent)
    assert transport._ask_workers() == "no answer"


def test_a_closed_client_is_an_error(client):
    other = distributed.Client(client.scheduler.address, set_as_default=False)
    other.close()
    with pytest.raises(ClusterError, match="closed"):
        Parallel(n_jobs=2, backend="dask", client=other)([delayed(square)(1)] * 3)


SCHEDULER = """
import asyncio, sys, distributed

async def main():
    async with distributed.Scheduler(
        host="127.0.0.1", port=0, dashboard_address=None
    ) as scheduler:
        print(scheduler.address, flush=True)
        async with distributed.Worker(scheduler.address, nthreads=2) as worker:
            await worker.finished()

asyncio.run(main())
"""


def test_a_lost_scheduler_is_an_error(tmp_path):
    folders = [str(Path(__file__).parent), os.environ.get("PYTHONPATH")]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, folders)),
        "DASK_TEMPORARY_DIRECTORY": str(tmp_path),
    }
    process = subprocess.Popen(
        [sys.executable, "-c", SCHEDULER],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    with process:
        try:
            address = process.stdout.readline().strip()
            other = distributed.Client(address, set_as_default=False, timeout="1s")
            other.wait_for_workers(1, timeout=30)
            runner = Parallel(n_jobs=2, backend="dask", client=other, batch_size=1)
            tasks = [delayed(pid)(0), *[delayed(wait_for)(str(tmp_path / "no"))] * 9]
            with pytest.raises(ClusterError, match="lost its scheduler"):
                runner(_killing(process, tasks))
            with pytest.raises(ClusterError, match="lost its scheduler"):
                runner([delayed(square)(1)] * 3)
        finally:
            process.kill()
    other.close()


def _killing(process, tasks):
    """Kill a process when some of the tasks have been taken."""
    for number, task in enumerate(tasks):
        if number == 4:
            process.kill()
            process.wait()
        yield task


def note(path):
    with open(path, "a") as file:
        file.write("x")


def count(path):
    return os.path.getsize(path) if os.path.exists(path) else 0


def die(deaths, others):
    """Kill the worker, the first time when `stay` runs on it."""
    while not count(deaths) and not count(others):
        threading.Event().wait(0.01)
    note(deaths)
    os.kill(os.getpid(), signal.SIGKILL)


def stay(deaths, others):
    """Be there the first time that `die` kills the worker."""
    note(others)
    while not count(deaths):
        threading.Event().wait(0.01)
    return "survived"


def test_a_task_that_always_kills_its_worker_is_named_and_no_other(tmp_path):
    paths = str(tmp_path / "deaths"), str(tmp_path / "others")
    with (
        # Dask blames what a worker had when it died the first time, and not the fourth.
        dask.config.set({"distributed.scheduler.allowed-failures": 0}),
        start(1, threads_per_worker=2, local_directory=str(tmp_path)) as cluster,
        distributed.Client(cluster) as other,
    ):
        runner = Parallel(
            n_jobs=2, backend="dask", client=other, on_error="return", batch_size=1
        )
        killer, neighbour = runner([delayed(die)(*paths), delayed(stay)(*paths)])
    assert isinstance(killer.exception, TerminatedWorkerError)
    assert "task 0: test_dask.die(" in str(killer.exception)
    assert neighbour == "survived"
    assert count(paths[0]) == 2


def test_missing_packages_are_named_with_the_way_to_get_them(monkeypatch):
    from fastjob.backends import registry

    monkeypatch.setitem(sys.modules, "distributed", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    home = registry.EXTERNAL_BACKENDS._entries["dask"]
    monkeypatch.setattr(home, "_class", None)
    with pytest.raises(ImportError, match=r"pip install 'fastjob\[dask\]'"):
        Parallel(backend="dask")
