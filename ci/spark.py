#!/usr/bin/env python3
"""Run joblibspark's backend, written for joblib, under fastjob on a local Spark.

    ci/spark.sh            makes an environment with both, and runs this in it
    ci/spark.py [--master local[2]]

Optional: it needs Java, and the package pyspark of some 300 MB.
"""

from __future__ import annotations

import argparse
import os
import sys

from joblibspark import register_spark
from pyspark.sql import SparkSession

import fastjob
from fastjob import Parallel, TaskError, delayed, parallel_config


def fail_at(bad, value):
    if value == bad:
        raise LookupError("no such value", value)
    return value


def inner(value):
    """A call inside a task of Spark, and the process that it ran in."""
    return os.getpid(), Parallel()(delayed(abs)(-i) for i in range(value))


def check(name, found, expected):
    print(f"{'ok' if found == expected else 'FAILED'}: {name}")
    if found != expected:
        print(f"  expected {expected!r}\n  found    {found!r}")
    return found == expected


def checks():
    values = list(range(40))
    with parallel_config(backend="spark", n_jobs=2):
        yield check(
            "results are complete and in order",
            Parallel()(delayed(abs)(-i) for i in values),
            values,
        )
        yield check(
            "map", Parallel().map(pow, values, [2] * 40), [i**2 for i in values]
        )
        try:
            Parallel(batch_size=3)(delayed(fail_at)(7, i) for i in values)
        except LookupError as error:
            told = error.args, "fail_at" in str(error.__cause__)
        yield check(
            "an error arrives with its traceback", told, (("no such value", 7), True)
        )
        results = Parallel(batch_size=3, on_error="return")(
            delayed(fail_at)(7, i) for i in values
        )
        yield check(
            "one failed task costs no other",
            [r.index if isinstance(r, TaskError) else "fine" for r in results],
            ["fine"] * 7 + [7] + ["fine"] * 32,
        )
        found = Parallel(batch_size=1)(delayed(inner)(i) for i in range(4))
        yield check(
            "calls inside tasks",
            [result for _, result in found],
            [list(range(i)) for i in range(4)],
        )
        yield check("tasks run elsewhere", os.getpid() in dict(found), False)
        with Parallel() as parallel:
            twice = [parallel(delayed(abs)(-i) for i in range(5)) for _ in range(2)]
        yield check("two calls in a with block", twice, [list(range(5))] * 2)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--master", default="local[2]")
    session = (
        SparkSession.builder.master(parser.parse_args().master)
        .config("spark.ui.showConsoleProgress", "false")
        .getOrCreate()
    )
    session.sparkContext.setLogLevel("ERROR")
    try:
        register_spark()
        print(f"fastjob {fastjob.__version__}, Spark {session.version}")
        return 0 if all(list(checks())) else 1
    finally:
        session.stop()


if __name__ == "__main__":
    sys.exit(main())
