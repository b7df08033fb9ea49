"""Calls on a real local ray cluster."""

import os
import signal
from concurrent.futures import Future
from pathlib import Path

import leaks
import numpy as np
import pytest
from cluster_tasks import ClusterTests, pid, square

import fastjob
from fastjob import Parallel, delayed
from fastjob.backends import cluster as engine
from fastjob.backends import registry
from fastjob.backends.cluster import Lost
from fastjob.errors import ClusterError, TerminatedWorkerError

ray = pytest.importorskip("ray")
fastjob_ray = pytest.importorskip("fastjob.backends.ray")
pytestmark = [
    pytest.mark.ray,
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("default:::ray"),
]


@pytest.fixture(scope="module", autouse=True)
def nothing_left_behind_by_module(temp_folder):
    before = leaks.Snapshot.take()
    yield
    found = leaks.left_behind(before, pool_may_stay=False, grace=30)
    # ray's client library keeps a few threads and descriptors of its own.
    assert not [f for f in found if f.startswith("process")]


@pytest.fixture(autouse=True)
def nothing_left_behind(temp_folder):
    """The cluster stays from test to test; see the module's own check."""


@pytest.fixture(scope="module")
def cluster(nothing_left_behind_by_module):
    with pytest.MonkeyPatch.context() as patch:
        # Where the workers find this module, and fastjob if it is built in place.
        folders = [str(Path(__file__).parent), os.environ.get("PYTHONPATH")]
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, folders)))
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
        yield
        ray.shutdown()


@pytest.mark.usefixtures("cluster")
class TestRay(ClusterTests):
    backend = "ray"


def test_n_jobs_is_the_number_of_cpus(cluster):
    assert Parallel(n_jobs=-1, backend="ray")._effective_n_jobs() == 2


def test_remote_args_reach_ray(cluster):
    runner = Parallel(backend="ray", ray_remote_args={"num_cpus": 2})
    assert runner(delayed(square)(i) for i in range(20)) == [i * i for i in range(20)]
    with pytest.raises(ValueError, match="ray_remote_args"):
        Parallel(backend="ray", ray_remote_args={"nonsense": 2})([delayed(pid)(0)] * 2)


def place(array, _):
    """Where an argument lies in memory, and whether it is the cluster's own."""
    return os.getpid(), array.ctypes.data, array.flags.writeable


def test_a_large_common_argument_is_put_once_by_itself(cluster, monkeypatch):
    values = []
    put = ray.put
    monkeypatch.setattr(ray, "put", lambda value: values.append(value) or put(value))
    array = np.arange(1 << 18, dtype=np.float64)
    runner = Parallel(n_jobs=2, backend="ray", batch_size=1)
    first, *others = runner(delayed(place)(array, i) for i in range(20))
    assert len(values) == 1 and values[0] is array
    # Nobody knew of the first task that others would have its argument too.
    assert first[2]
    # Each process sees one object of the store, and all tasks see that one.
    assert not any(writeable for _, _, writeable in others)
    places = {(pid, address) for pid, address, _ in others}
    assert len(places) == len({pid for pid, _ in places})


HEADLESS = """
import threading
import psutil, ray
from fastjob import Parallel, delayed
from fastjob.backends import cluster, ray as ours
from fastjob.errors import ClusterError

ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
cluster.CHECK_SECONDS = 0.1
cluster.ASK_SECONDS = ours.HEAD_SECONDS = 0.0

def wait(_):
    threading.Event().wait()

def tasks():
    yield delayed(abs)(-1)
    for number in range(9):
        if number == 3:
            kill()
        yield delayed(wait)(number)

def kill():
    processes = psutil.Process().children(recursive=True)
    for process in processes:
        process.kill()
    psutil.wait_procs(processes)

for input in tasks(), [delayed(abs)(-1)] * 3:
    try:
        Parallel(n_jobs=2, backend="ray", batch_size=1)(input)
    except ClusterError as error:
        print("ClusterError:", error)
ray.shutdown()
print("shut down")
"""


def test_a_cluster_that_is_killed_in_mid_call_is_one_clear_error(run_python):
    done = run_python(HEADLESS)
    lines = done.stdout.splitlines()
    assert done.returncode == 0, done.stderr
    assert len(lines) == 3 and lines[2] == "shut down"
    for line in lines[:2]:
        assert line.startswith("ClusterError: The head of the ray cluster does not")
        assert "Connection refused" in line


def test_a_head_may_be_away_for_a_while(cluster, monkeypatch):
    monkeypatch.setattr(fastjob_ray, "ask_head", lambda: "refused")
    monkeypatch.setattr(engine, "ASK_SECONDS", 0.0)
    transport = fastjob_ray.RayTransport(2, False, {})
    transport.check()
    transport.head.patience = 0.0
    with pytest.raises(ClusterError, match=r"head of the ray cluster .* \(refused\)"):
        transport.check()


def test_a_head_that_never_answered_is_not_missed(cluster, monkeypatch):
    assert fastjob_ray.ask_head() == ""

    def refuse(*args, **options):
        raise OSError("refused")

    monkeypatch.setattr("socket.create_connection", refuse)
    assert fastjob_ray.ask_head().endswith(": refused")
    monkeypatch.setattr(fastjob_ray, "_heads", set())
    assert fastjob_ray.ask_head() == ""


@pytest.mark.parametrize(
    ("name", "kind", "text"),
    [
        ("LocalRayletDiedError", ClusterError, "ray node of this program has died"),
        ("NodeDiedError", Lost, "NodeDiedError: it burns"),
    ],
)
def test_a_node_that_has_died_is_told_from_a_worker(cluster, name, kind, text):
    job = Future()
    job.set_exception(getattr(ray.exceptions, name)("it burns"))
    transport = fastjob_ray.RayTransport(2, False, {})
    with pytest.raises(kind, match=text):
        transport.fetch(job)


def die(_):
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_task_that_always_kills_its_worker_is_named_and_no_other(cluster):
    runner = Parallel(n_jobs=2, backend="ray", on_error="return")
    killer, *others = runner([delayed(die)(0), *(delayed(square)(i) for i in range(6))])
    assert isinstance(killer.exception, TerminatedWorkerError)
    assert "task 0: test_ray.die(0)" in str(killer.exception)
    assert others == [i * i for i in range(6)]


def test_two_programs_at_once(cluster, run_python, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", ray.get_runtime_context().gcs_address)
    here = Parallel(n_jobs=2, backend="ray", return_as="generator", batch_size=1)
    stream = here(delayed(square)(i) for i in range(40))
    assert next(stream) == 0
    there = run_python(
        "from fastjob import Parallel, delayed\n"
        "print(Parallel(n_jobs=2, backend='ray')(delayed(abs)(-i) for i in range(9)))"
    )
    assert f"{list(range(9))}" in there.stdout
    assert list(stream) == [i * i for i in range(1, 40)]


def test_it_can_be_registered_by_another_name(cluster, monkeypatch):
    monkeypatch.setattr(registry, "BACKENDS", registry.BACKENDS.copy())
    fastjob.register_ray("our cluster")
    runner = Parallel(n_jobs=2, backend="our cluster")
    assert runner(delayed(square)(i) for i in range(3)) == [0, 1, 4]


def test_a_cluster_that_does_not_answer_is_an_error(monkeypatch):
    def refuse(**options):
        raise ConnectionError(f"nobody at {options['address']}")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", refuse)
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    with pytest.raises(ClusterError, match="no ray cluster answers at RAY_ADDRESS="):
        fastjob.register_ray()
