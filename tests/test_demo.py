"""The demo: its data, its statistics, and that it notices a wrong result."""

from __future__ import annotations

import os
import re
from collections import Counter

import numpy as np
import pytest

from fastjob import demo

SMALL = ["--permutations", "300", "--bootstraps", "300"]


def test_the_data_are_fishers():
    iris = demo.load_iris()
    everything = np.concatenate(list(iris.values()))
    assert list(iris) == ["setosa", "versicolor", "virginica"]
    assert everything.shape == (150, 4)
    # The sums of the four columns, as published with the data.
    assert everything.sum(axis=0).round(1).tolist() == [876.5, 458.6, 563.7, 179.9]
    # Rows 35 and 38 are those that a widely spread copy has wrong.
    assert iris["setosa"][34].tolist() == [4.9, 3.1, 1.5, 0.2]
    assert iris["setosa"][37].tolist() == [4.9, 3.6, 1.4, 0.1]


def test_discriminant_agrees_with_published_results():
    """Three of the 100 plants fall on the wrong side, as in every textbook."""
    iris = demo.load_iris()
    groups = iris["virginica"], iris["versicolor"]
    rule = demo.discriminant(*groups)
    assert demo.error_rate(rule, *groups) == pytest.approx(0.03)
    assert demo.error_rate(rule, *reversed(groups)) == pytest.approx(0.97)


def test_discriminant_points_from_one_mean_to_the_other():
    """With round clouds of points the best direction joins their centres."""
    cloud = np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    offset = np.array([4, 2])
    direction, threshold = demo.discriminant(cloud + offset, cloud - offset)
    assert direction[0] / direction[1] == pytest.approx(2)
    assert threshold == pytest.approx(0)


def test_a_permutation_keeps_the_values_and_depends_on_seed_and_task():
    pooled = np.arange(10.0)
    one = demo.permuted_difference(pooled, 4, 7, 0)
    assert one == demo.permuted_difference(pooled, 4, 7, 0)
    assert one.worker == os.getpid()
    others = {demo.permuted_difference(pooled, 4, 7, task).value for task in range(20)}
    assert len(others) > 5
    assert pooled.tolist() == list(range(10))


def test_permutation_p_value_agrees_with_the_t_test():
    study, text = demo.permutation_test(4000, n_jobs=1, seed=1)
    # Welch's t-test of the same two samples gives p = 0.0018.
    p = float(re.search(r"p = ([\d.]+)", text).group(1))
    assert 0.0002 < p < 0.006
    assert study.values.mean() == pytest.approx(0, abs=0.01)


def test_bootstrap_error_lies_between_the_kind_and_the_harsh():
    study, text = demo.bootstrap(1000, n_jobs=1, seed=1)
    assert "3.0% of the plants that made the rule" in text
    # Leaving out one plant at a time gives 3 %; a bootstrap sample holds only 63 %
    # of the plants, and its rule is a little worse.
    assert 0.03 < study.values.mean() < 0.05
    assert study.values.min() >= 0
    assert study.values.max() < 0.3


def test_the_demo_prints_the_statistics_both_times_and_the_spread(capsys):
    assert demo.main([*SMALL, "--n-jobs", "2"]) == 0
    out = capsys.readouterr().out
    assert "virginica less versicolor: 0.204 cm" in out
    assert "p = 0." in out
    assert "by Fisher's linear discriminant: " in out
    assert len(re.findall(r"sequential [\d.]+ s, parallel [\d.]+ s", out)) == 2
    assert out.count("parallel == sequential: yes") == 2
    spreads = re.findall(r"tasks per worker: (.*) = (.*)", out)
    assert len(spreads) == 2
    for parts, total in spreads:
        assert sum(int(part) for part in parts.split(" + ")) == int(total) == 300


def test_tasks_run_in_workers():
    study, _ = demo.permutation_test(300, n_jobs=2, seed=1)
    assert os.getpid() not in study.workers
    assert study.workers.total() == 300
    assert study.equal


def test_the_result_does_not_depend_on_the_number_of_workers():
    one, _ = demo.bootstrap(200, n_jobs=1, seed=3)
    two, _ = demo.bootstrap(200, n_jobs=2, seed=3)
    assert one.values.tolist() == two.values.tolist()


def test_a_difference_between_both_ways_fails_the_demo(monkeypatch, capsys):
    wrong = demo.Study(np.zeros(2), 1.0, 1.0, Counter({1: 2}), equal=False)
    monkeypatch.setattr(demo, "bootstrap", lambda *_: (wrong, "a study"))
    assert demo.main([*SMALL, "--n-jobs", "1"]) == 1
    out, err = capsys.readouterr()
    assert "parallel == sequential: NO" in out
    assert "differ" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--permutations", "1"], "'1' is not a whole number from 2 up"),
        (["--bootstraps", "many"], "'many' is not a whole number from 2 up"),
        (["--n-jobs", "0"], "'0' is not a number of workers"),
        (["--seed", "-1"], "'-1' is not a whole number from 0 up"),
        (["surplus"], "unrecognized arguments: surplus"),
    ],
)
def test_a_mistake_is_named_and_exits_with_2(arguments, message, capsys):
    with pytest.raises(SystemExit) as exit_:
        demo.main(arguments)
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err


def test_the_command_runs_from_anywhere(run_python):
    done = run_python("-m", "fastjob", "demo", *SMALL)
    assert done.stderr == ""
    assert done.returncode == 0
    assert done.stdout.count("parallel == sequential: yes") == 2
