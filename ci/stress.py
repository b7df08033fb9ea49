#!/usr/bin/env python3
"""Run random calls under random faults for a given time, and check every result.

    ci/stress.py [--seconds 60] [--seed N] [--threads 3]

Faults: workers killed, stopped and continued; the nursery killed; interrupts of the
calling thread; tasks that raise, exit, crash, fork, hang (under a time limit);
arguments that cannot be pickled; results that cannot be pickled or rebuilt; generators
dropped half-way; shutdown in the middle; disks that are full. A call may end with an
error that one of the faults explains, or with a list in which every result is right;
anything else ends the run with exit code 1, and so does an array, kept by the caller or
by a worker, that changes after the call. The seed is printed, and repeats the choices
(not the timing).
"""

from __future__ import annotations

import argparse
import ctypes
import errno
import faulthandler
import os
import random
import signal
import sys
import threading
import time
import warnings
from collections import Counter

import numpy as np
import psutil
import small_disks

import fastjob
from fastjob import Parallel, TaskError, delayed, errors


class Unpicklable:
    def __reduce__(self):
        raise TypeError("stays")


class OnlyThere:
    def __init__(self, home):
        self.home = home

    def __setstate__(self, state):
        if os.getpid() == state["home"]:
            raise LookupError("not here")


class Interrupt(BaseException):
    """Set in a calling thread from outside."""


#: What a task does instead of returning, and what its error may be.
TROUBLE = {
    "raise": ValueError,
    "exit": SystemExit,
    "kill": errors.TerminatedWorkerError,
    "crash": errors.TerminatedWorkerError,
    "_exit": errors.TerminatedWorkerError,
    "unsendable": errors.TaskPicklingError,
    "unpicklable": errors.ResultPicklingError,
    "only there": errors.ResultUnpicklingError,
    "hang": errors.TaskTimeoutError,
}


#: In a worker: arguments of earlier tasks.
KEPT = []


def work(i, data, seconds, trouble, home):
    assert holds(data, i), "an argument is wrong"
    assert all(holds(kept, j) for kept, j in KEPT), "an argument changed later"
    KEPT[:] = [*KEPT[-2:], (data, i)]
    if seconds:
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            pass
    if trouble == "raise":
        raise ValueError(i)
    if trouble == "exit":
        sys.exit(i)
    if trouble == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if trouble == "crash":
        ctypes.string_at(0)
    if trouble == "_exit":
        os._exit(3)
    if trouble == "unpicklable":
        return Unpicklable()
    if trouble == "only there":
        return OnlyThere(home)
    if trouble == "hang":
        time.sleep(3600)
    if trouble == "fork" and os.fork() == 0:
        return "a child must not be heard"
    return i, ~data if isinstance(data, np.ndarray) else made(i + 1, len(data))


def made(i, nbytes):
    return bytes([i % 256]) * nbytes


def holds(data, i):
    """Whether every byte is the one of task ``i``."""
    return bytes(data).count(i % 256) == len(data)


class Run:
    """A stress run."""

    def __init__(self, seed, seconds, n_threads, disks):
        self.disks = disks
        self.choose = random.Random(seed)
        self.deadline = time.monotonic() + seconds
        self.n_threads = n_threads
        self.counts = Counter()
        self.lock = threading.Lock()
        self.wrong = []
        self.callers = {}

    def over(self):
        return bool(self.wrong) or time.monotonic() > self.deadline

    def count(self, what):
        with self.lock:
            self.counts[what] += 1

    def main(self):
        seeds = [self.choose.random() for _ in range(self.n_threads)]
        threads = [threading.Thread(target=self.calls, args=(s,)) for s in seeds]
        for thread in threads:
            thread.start()
        self.faults()
        for thread in threads:
            thread.join(120)
            if thread.is_alive():
                self.wrong.append("a call hangs")
                faulthandler.dump_traceback()
                return
        for process in psutil.Process().children():
            if process.status() == psutil.STATUS_STOPPED:
                process.resume()
        fastjob.shutdown()
        for thread in threading.enumerate():
            if thread is not threading.current_thread() and not thread.daemon:
                self.wrong.append(f"thread {thread} is left")
        _, alive = psutil.wait_procs(psutil.Process().children(recursive=True), 5)
        self.wrong += [f"process {process} is left" for process in alive]
        if self.disks is not None:
            self.wrong += [f"file {path} is left" for path in self.disks.leftovers()]

    def faults(self):
        """Hurt processes and threads at random moments."""
        choose = random.Random(self.choose.random())
        while not self.over():
            time.sleep(choose.random() * 0.3)
            kind = choose.choices(
                ["kill", "stop", "nursery", "interrupt", "shutdown", "disk"],
                [6, 3, 1, 4, 1, 4 if self.disks is not None else 0],
            )[0]
            nurseries = psutil.Process().children()
            try:
                workers = [w for nursery in nurseries for w in nursery.children()]
                if kind == "nursery" and nurseries:
                    choose.choice(nurseries).kill()
                elif kind == "kill" and workers:
                    choose.choice(workers).kill()
                elif kind == "stop" and workers:
                    victim = choose.choice(workers)
                    victim.suspend()
                    time.sleep(choose.random() * 0.1)
                    victim.resume()
                elif kind == "shutdown":
                    fastjob.shutdown()
                elif kind == "interrupt":
                    self.interrupt(choose)
                elif kind == "disk":
                    self.disks.toggle(choose)
                self.count(f"fault: {kind}")
            except psutil.NoSuchProcess:
                continue

    def interrupt(self, choose):
        with self.lock:
            armed = [ident for ident, in_call in self.callers.items() if in_call]
            if armed:
                ctypes.pythonapi.PyThreadState_SetAsyncExc(
                    ctypes.c_ulong(choose.choice(armed)), ctypes.py_object(Interrupt)
                )

    def calls(self, seed):
        choose = random.Random(seed)
        me = threading.get_ident()
        kept = []
        while not self.over():
            try:
                try:
                    plan = Plan(choose, self.disks, kept)
                    with self.lock:
                        self.callers[me] = True
                    outcome = plan.run()
                finally:
                    while True:
                        try:
                            with self.lock:
                                self.callers[me] = False
                            break
                        except Interrupt:
                            continue
                self.count(outcome)
            except Interrupt:
                self.count("interrupted")
            except (errors.NurseryError, errors.TerminatedWorkerError) as error:
                self.count(type(error).__name__)
            except BaseException as error:
                self.wrong.append(f"{plan}: {error!r}")
                sys.excepthook(type(error), error, error.__traceback__)
                return


class Plan:
    """One call, chosen at random."""

    def __init__(self, choose, disks, kept):
        self.n_tasks = choose.choice([0, 1, 5, 60, 400])
        self.n_jobs = choose.choice([2, 2, 3, 5])
        self.nbytes = choose.choice([0, 10, 10, 20_000, 400_000, 2_000_000])
        if self.nbytes > 1000:
            self.n_tasks = min(self.n_tasks, 40)
        self.arrays = choose.choice([False, True])
        self.disks = disks
        self.temp_folder = choose.choice([None, disks and disks.folders["named"]])
        self.kept = kept  # results of earlier calls
        self.seconds = choose.choice([0, 0, 0.0005, 0.005])
        self.batch_size = choose.choice(["auto", "auto", 1, 7])
        self.return_as = choose.choice(["list", "generator", "generator_unordered"])
        self.on_error = choose.choice(["raise", "return", "return"])
        self.retries = choose.choice([0, 0, 1])
        self.pre_dispatch = choose.choice(["2 * n_jobs", "all", 3])
        names = [*TROUBLE, "fork"]
        self.troubles = {}
        if choose.random() < 0.6:
            for _ in range(choose.randrange(1, 4)):
                self.troubles[choose.randrange(max(1, self.n_tasks))] = choose.choice(
                    names
                )
        self.timeout = 2.0 if "hang" in self.troubles.values() else None
        self.read = choose.choice([None, None, None, 3])

    def __repr__(self):
        return f"Plan({self.__dict__})"

    def run(self):
        parallel = Parallel(
            self.n_jobs,
            "processes",
            batch_size=self.batch_size,
            return_as=self.return_as,
            on_error=self.on_error,
            retries=self.retries,
            pre_dispatch=self.pre_dispatch,
            timeout=self.timeout,
            temp_folder=self.temp_folder,
        )
        home = os.getpid()
        tasks = (
            delayed(work)(i, self.data(i), self.seconds, self.trouble(i), home)
            for i in range(self.n_tasks)
        )
        found = []
        try:
            results = parallel(tasks)
            for value in results:
                found.append(value)
                if self.return_as != "list" and len(found) == self.read:
                    results.close()
                    break
        except (*TROUBLE.values(), OSError) as error:
            self.explain(error)
            self.check(found, whole=False)
            return f"failed: {type(error).__name__}"
        self.check(found, whole=self.return_as == "list" or len(found) != self.read)
        return "right"

    def trouble(self, i):
        name = self.troubles.get(i)
        return Unpicklable() if name == "unsendable" else name

    def data(self, i):
        if self.arrays:
            return np.full(self.nbytes, i % 256, np.uint8)
        return made(i, self.nbytes)

    def result_of(self, i):
        return 255 - i if self.arrays else i + 1

    def no_room(self, error):
        """Whether it says that a disk is full, and there is one."""
        return self.disks and getattr(error, "errno", None) == errno.ENOSPC

    def explain(self, error):
        """Raise the error again unless a task, a kill or a full disk made it."""
        if self.no_room(error):
            return
        kinds = [TROUBLE[name] for name in self.troubles.values() if name != "fork"]
        if self.on_error == "return" or not any(isinstance(error, k) for k in kinds):
            # Only workers that were killed from outside can be at fault.
            raise error

    def check(self, found, whole):
        if self.return_as == "generator_unordered":
            places = [v.index if isinstance(v, TaskError) else v[0] for v in found]
            assert len(set(places)) == len(places), "a result came twice"
        else:
            places = range(len(found))
        assert not whole or len(found) == self.n_tasks, "results are missing"
        for i, value in zip(places, found, strict=True):
            if not isinstance(value, TaskError):
                place, data = value
                assert place == i, f"result {place} is in the place of {i}"
                assert len(data) == self.nbytes, f"result {i} is of another size"
                assert holds(data, self.result_of(i)), f"result {i} is wrong"
                continue
            assert value.index == i, "an error is in another task's place"
            wanted = TROUBLE.get(self.troubles.get(i), ())
            # A worker that was killed from outside takes its task along.
            allowed = (errors.TerminatedWorkerError, *([wanted] if wanted else []))
            if not self.no_room(value.exception):
                assert isinstance(value.exception, allowed), repr(value)
        self.keep(found)

    def keep(self, found):
        """Check the results that were kept so far, and keep one of these."""
        for data, byte in self.kept:
            assert holds(data, byte), "a result changed after its call"
        good = [value for value in found if not isinstance(value, TaskError)]
        if good:
            i, data = good[len(good) // 2]
            self.kept[:] = [*self.kept[-20:], (data, self.result_of(i))]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument(
        "--seed", type=int, default=random.SystemRandom().getrandbits(32)
    )
    parser.add_argument("--threads", type=int, default=3)
    options = parser.parse_args()
    disks = small_disks.enter()
    if disks is None:
        print("no full disks: there can be no mounts of this process's own")
    warnings.filterwarnings("ignore", "cannot put", RuntimeWarning)
    faulthandler.enable()
    print(f"seed {options.seed}", flush=True)
    run = Run(options.seed, options.seconds, options.threads, disks)
    run.main()
    for what, n in sorted(run.counts.items()):
        print(f"{n:7}  {what}")
    for what in run.wrong:
        print("WRONG:", what)
    print(f"seed {options.seed}: {'failed' if run.wrong else 'passed'}", flush=True)
    if run.wrong:
        os._exit(1)


if __name__ == "__main__":
    main()
