"""Functions that fail, for the tests of failures."""


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
