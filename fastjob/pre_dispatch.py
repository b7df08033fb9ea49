"""How far ahead of completion the input is consumed: the value of ``pre_dispatch``.

An expression is text that may come from a configuration file, so it is parsed here,
by a recursive descent over a closed grammar, and never handed to Python:

    sum     = product { ("+" | "-") product }
    product = signed { ("*" | "/" | "//" | "%") signed }
    signed  = ("+" | "-") signed | power
    power   = atom [ "**" signed ]
    atom    = number | "n_jobs" | "(" sum ")"

Every intermediate value is bounded, so that no expression costs time or memory.
"""

from __future__ import annotations

import operator

MAX_LENGTH = 80
MAX_VALUE = 10**9
MAX_EXPONENT = 64

_SUMS = {"+": operator.add, "-": operator.sub}
_PRODUCTS = {
    "*": operator.mul,
    "/": operator.truediv,
    "//": operator.floordiv,
    "%": operator.mod,
}
_SYMBOLS = ("**", "//", "+", "-", "*", "/", "%", "(", ")")

_known: dict[tuple[str, int], int] = {}


def tokens_of(text: str) -> list[str]:
    """Split an expression into numbers, names and symbols."""
    tokens, at = [], 0
    while at < len(text):
        if text[at].isspace():
            at += 1
            continue
        symbol = next((s for s in _SYMBOLS if text.startswith(s, at)), None)
        if symbol is not None:
            tokens.append(symbol)
            at += len(symbol)
            continue
        end = at
        while end < len(text) and (text[end].isalnum() or text[end] in "._"):
            end += 1
        if end == at:
            raise ValueError(f"unexpected character {text[at]!r}")
        tokens.append(text[at:end])
        at = end
    return tokens


class _Parser:
    """One pass over the tokens of an expression."""

    def __init__(self, tokens: list[str], n_jobs: int) -> None:
        self.tokens = tokens
        self.at = 0
        self.n_jobs = n_jobs

    def peek(self) -> str:
        return self.tokens[self.at] if self.at < len(self.tokens) else ""

    def take(self) -> str:
        token = self.peek()
        self.at += 1
        return token

    def bounded(self, value: float) -> float:
        if not -MAX_VALUE <= value <= MAX_VALUE:
            raise ValueError(f"a value is larger than {MAX_VALUE}")
        return value

    def sum(self) -> float:
        value = self.product()
        while self.peek() in _SUMS:
            operate = _SUMS[self.take()]
            value = self.bounded(operate(value, self.product()))
        return value

    def product(self) -> float:
        value = self.signed()
        while self.peek() in _PRODUCTS:
            operate = _PRODUCTS[self.take()]
            value = self.bounded(operate(value, self.signed()))
        return value

    def signed(self) -> float:
        if self.peek() in _SUMS:
            return -self.signed() if self.take() == "-" else self.signed()
        return self.power()

    def power(self) -> float:
        base = self.atom()
        if self.peek() != "**":
            return base
        self.take()
        exponent = self.signed()
        if abs(exponent) > MAX_EXPONENT:
            raise ValueError(f"an exponent is larger than {MAX_EXPONENT}")
        value = base**exponent
        if isinstance(value, complex):
            raise ValueError("a value is not a real number")
        return self.bounded(value)

    def atom(self) -> float:
        token = self.take()
        if token == "n_jobs":
            return self.n_jobs
        if token == "(":
            value = self.sum()
            if self.take() != ")":
                raise ValueError("a parenthesis is not closed")
            return value
        if not token:
            raise ValueError("it ends too early")
        if not (token[0].isdigit() or token[0] == ".") or "_" in token:
            raise ValueError(f"{token!r} is neither a number nor n_jobs")
        return self.bounded(int(token) if token.isdigit() else float(token))


def evaluate(text: str, n_jobs: int) -> float:
    """Return the value of an arithmetic expression in ``n_jobs``.

    Parameters
    ----------
    text : str
        Numbers, ``n_jobs``, parentheses and ``+ - * / // % **``.
    n_jobs : int
        Value of the name ``n_jobs``.

    Returns
    -------
    int or float

    Raises
    ------
    ValueError
        If the text is not such an expression, is longer than 80 characters, divides
        by zero, or takes a value beyond one thousand million.

    Examples
    --------
    >>> evaluate("1.5 * n_jobs", 2)
    3.0
    >>> evaluate("2 ** (n_jobs - 1)", 4)
    8
    """
    if len(text) > MAX_LENGTH:
        raise ValueError(
            f"pre_dispatch={text[:MAX_LENGTH]!r}... is too long: an expression has at "
            f"most {MAX_LENGTH} characters."
        )
    try:
        parser = _Parser(tokens_of(text), n_jobs)
        value = parser.sum()
        if parser.peek():
            raise ValueError(f"unexpected {parser.peek()!r}")
    except (ValueError, ZeroDivisionError, OverflowError, RecursionError) as error:
        raise ValueError(
            f"pre_dispatch={text!r} is not a valid expression: {error}. Write 'all', "
            "a number, or an expression of numbers and n_jobs with + - * / // % **."
        ) from None
    return value


def window_of(pre_dispatch: object, n_jobs: int) -> int:
    """Return how many tasks may be taken and not yet completed; 0 is no limit.

    Parameters
    ----------
    pre_dispatch : int, float or str
        A number, ``'all'``, or an expression in ``n_jobs``.
    n_jobs : int
        Workers of the call.

    Raises
    ------
    ValueError
        If it is none of these, or less than 1.
    """
    if isinstance(pre_dispatch, str):
        known = _known.get((pre_dispatch, n_jobs))
        if known is not None:
            return known
        if pre_dispatch.strip() == "all":
            amount = 0
        else:
            amount = _at_least_one(evaluate(pre_dispatch, n_jobs), pre_dispatch)
        if len(_known) < 1000:
            _known[pre_dispatch, n_jobs] = amount
        return amount
    try:
        value = int(pre_dispatch)  # type: ignore[call-overload]
    except (TypeError, ValueError, OverflowError):
        raise ValueError(
            "pre_dispatch must be a number, 'all', or an expression in n_jobs, got: "
            f"{pre_dispatch!r}"
        ) from None
    return _at_least_one(value, pre_dispatch)


def _at_least_one(value: float, given: object) -> int:
    if value < 1:
        raise ValueError(
            f"pre_dispatch={given!r} comes to {value}: no task could ever start. "
            "It must be at least 1."
        )
    return int(value)
