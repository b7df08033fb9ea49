"""Functions that fail, for the tests of failures."""

import builtins
import warnings

ExceptionGroup = getattr(builtins, "ExceptionGroup", Exception)


def caught(function, *args, **kwargs):
    """What the call raises, with a traceback that starts in the function."""
    try:
        function(*args, **kwargs)
    except BaseException as error:
        error.__traceback__ = error.__traceback__.tb_next
        return error
    raise AssertionError("nothing was raised")


def chained():
    try:
        {}["key"]
    except KeyError as error:
        raise ValueError("outer") from error


def in_context():
    try:
        {}["key"]
    except KeyError:
        raise ValueError("outer")  # noqa: B904


def suppressed():
    try:
        {}["key"]
    except KeyError:
        raise ValueError("outer") from None


def grouped():
    raise ExceptionGroup("several", [ValueError(1), KeyError("two")])


def noted():
    error = ValueError("here")
    error.add_note("a note")
    raise error


def wrong_syntax():
    compile("1 +", "some.py", "exec")


def too_deep():
    too_deep()


def warned():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.warn("beware", UserWarning, stacklevel=1)
