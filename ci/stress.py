#!/usr/bin/env python3
"""Run random calls under random faults for a given time, and check every result.

    ci/stress.py [--seconds 60] [--seed N] [--threads 3]

Faults: workers killed, stopped and continued; the nursery killed; interrupts of the
calling thread; tasks that raise, exit, crash, fork, hang (under a time limit); results
that cannot be pickled or rebuilt; generators dropped half-way; forks in mid-call;
shutdown in the middle. A call may end with an error that one of the faults explains,
or with a list in which every result is right; anything else ends the run with exit
code 1. The seed is printed, and repeats the choices (not the timing).
"""

from __future__ import annotations

import argparse
import ctypes
import faulthandler
import os
import random
import signal
import sys
import threading
import time
from collections import Counter

import psutil

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
    "unpicklable": errors.ResultPicklingError,
    "only there": errors.ResultUnpicklingError,
    "hang": errors.TaskTimeoutError,
}


def work(i, nbytes, seconds, trouble, home):
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
    return expected(i, nbytes)


def expected(i, nbytes):
    return i, bytes([i % 256]) * nbytes


class Run:
    """A stress run."""

    def __init__(self, seed, seconds, n_threads):
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

    def faults(self):
        """Hurt processes and threads at random moments."""
        choose = random.Random(self.choose.random())
        while not self.over():
            time.sleep(choose.random() * 0.3)
            kind = choose.choices(
                ["kill", "stop", "nursery", "interrupt", "shutdown"], [6, 3, 1, 4, 1]
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
        while not self.over():
            try:
                try:
                    plan = Plan(choose)
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

    def __init__(self, choose):
        self.n_tasks = choose.choice([0, 1, 5, 60, 400])
        self.n_jobs = choose.choice([2, 2, 3, 5])
        self.nbytes = choose.choice([0, 10, 10, 20_000, 400_000])
        if self.nbytes > 1000:
            self.n_tasks = min(self.n_tasks, 40)
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
        )
        home = os.getpid()
        tasks = (
            delayed(work)(i, self.nbytes, self.seconds, self.troubles.get(i), home)
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
        except tuple({*TROUBLE.values()}) as error:
            self.explain(error)
            self.check(found, whole=False)
            return f"failed: {type(error).__name__}"
        self.check(found, whole=self.return_as == "list" or len(found) != self.read)
        return "right"

    def explain(self, error):
        """Raise the error again unless a task of this plan, or a kill, made it."""
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
                assert value == expected(i, self.nbytes), f"result {i} is wrong"
                continue
            assert value.index == i, "an error is in another task's place"
            wanted = TROUBLE.get(self.troubles.get(i), ())
            # A worker that was killed from outside takes its task along.
            allowed = (errors.TerminatedWorkerError, *([wanted] if wanted else []))
            assert isinstance(value.exception, allowed), repr(value)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument(
        "--seed", type=int, default=random.SystemRandom().getrandbits(32)
    )
    parser.add_argument("--threads", type=int, default=3)
    options = parser.parse_args()
    faulthandler.enable()
    print(f"seed {options.seed}", flush=True)
    run = Run(options.seed, options.seconds, options.threads)
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
