"""How far ahead the input is taken: numbers, 'all', and expressions."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastjob.pre_dispatch import MAX_LENGTH, evaluate, window_of


@pytest.mark.parametrize(
    ("text", "n_jobs", "value"),
    [
        ("2 * n_jobs", 3, 6),
        ("2*n_jobs", 3, 6),
        ("1.5*n_jobs", 2, 3.0),
        ("n_jobs", 7, 7),
        ("7 // 2 + 1", 1, 4),
        ("7 % 4", 1, 3),
        ("2 ** 3 ** 2", 1, 512),
        ("-2 ** 2", 1, -4),
        ("2 ** -1", 1, 0.5),
        ("--3", 1, 3),
        ("+3 - -1", 1, 4),
        ("10 - 3 - 2", 1, 5),
        ("8 / 2 / 2", 1, 2.0),
        ("(1 + 2) * (n_jobs - 1)", 5, 12),
        (" .5*n_jobs ", 4, 2.0),
    ],
)
def test_an_expression_has_the_value_it_has_in_python(text, n_jobs, value):
    result = evaluate(text, n_jobs)
    assert result == value
    assert type(result) is type(value)


ATOMS = st.one_of(
    st.integers(0, 20).map(str),
    st.floats(0, 20).map(lambda x: f"{x:.3f}"),
    st.just("n_jobs"),
)
EXPRESSIONS = st.recursive(
    ATOMS,
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from(["+", "-", "*", "//", "%", "/"]), inner).map(
            " ".join
        ),
        inner.map("({})".format),
        inner.map("-{}".format),
    ),
    max_leaves=6,
)


@given(EXPRESSIONS, st.integers(1, 64))
def test_any_arithmetic_agrees_with_python(text, n_jobs):
    try:
        expected = eval(text, {"n_jobs": n_jobs})
    except ZeroDivisionError:
        expected = None
    if expected is None or abs(expected) > 10**9 or len(text) > MAX_LENGTH:
        with pytest.raises(ValueError, match="pre_dispatch="):
            evaluate(text, n_jobs)
    else:
        assert evaluate(text, n_jobs) == expected


@given(st.text(max_size=100))
def test_any_text_is_a_number_or_a_value_error(text):
    try:
        value = evaluate(text, 2)
    except ValueError as error:
        assert "pre_dispatch=" in str(error)
    else:
        assert isinstance(value, int | float)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "ends too early"),
        ("2 *", "ends too early"),
        ("2 n_jobs", "unexpected 'n_jobs'"),
        ("(2", "parenthesis"),
        ("2)", "unexpected '\\)'"),
        ("__import__('os')", "unexpected character"),
        ("__import__(2)", "neither a number nor n_jobs"),
        ("n_jobs.real", "neither a number nor n_jobs"),
        ("2 & 3", "unexpected character '&'"),
        ("1_000", "neither a number nor n_jobs"),
        ("9 ** 9 ** 9", "exponent"),
        ("99999 * 99999", "larger than"),
        ("1e300", "larger than"),
        ("(-1) ** 0.5", "not a real number"),
        ("1 / 0", "division by zero"),
        ("0 ** -1", "negative power|zero"),
        ("1.2.3", "could not convert"),
        ("(" * 70 + "1", "parenthesis"),
    ],
)
def test_what_is_no_expression_is_refused_with_the_reason(text, reason):
    with pytest.raises(ValueError, match=reason) as caught:
        evaluate(text, 2)
    assert "numbers and n_jobs" in str(caught.value)


def test_a_long_expression_is_refused_before_it_is_read():
    with pytest.raises(ValueError, match="too long"):
        evaluate("1+" * 1000 + "1", 2)


@pytest.mark.parametrize(
    ("given_", "window"),
    [("all", 0), (5, 5), (2.9, 2), ("1.5 * n_jobs", 3), ("3", 3), (" all ", 0)],
)
def test_the_window_is_a_whole_number_of_tasks(given_, window):
    assert window_of(given_, 2) == window
    assert window_of(given_, 2) == window  # as remembered


@pytest.mark.parametrize("bad", [0, -1, "0.1 * n_jobs", "n_jobs - 2"])
def test_a_window_in_which_no_task_fits_is_refused(bad):
    with pytest.raises(ValueError, match="at least 1"):
        window_of(bad, 2)


@pytest.mark.parametrize("bad", [None, [], object(), float("nan"), float("inf")])
def test_a_window_that_is_no_number_is_refused(bad):
    with pytest.raises(ValueError, match="pre_dispatch must be a number"):
        window_of(bad, 2)
