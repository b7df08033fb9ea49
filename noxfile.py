"""The daily commands: ``nox -l`` lists them. Each calls what CI calls."""

import nox

nox.options.default_venv_backend = "venv"
nox.options.sessions = ["tests", "lint", "docs"]


@nox.session
def tests(session: nox.Session) -> None:
    """The test suite, on the installed package: nox -s tests -- -k demo"""
    session.install(".[test]")
    session.run("pytest", *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """ruff, cython-lint, mypy and pyright."""
    session.install("-e", ".", "-r", "ci/lint-requirements.txt")
    session.run("ci/lint.sh", external=True)


@nox.session
def docs(session: nox.Session) -> None:
    """The documentation, every warning an error."""
    session.install("-e", ".[docs]")
    session.run("ci/docs.sh", external=True)


@nox.session
def bench(session: nox.Session) -> None:
    """Side by side with joblib: nox -s bench -- --quick"""
    session.install("-e", ".[bench]")
    session.run("python", "-m", "benchmarks", "versus", *session.posargs)


@nox.session
def sanitizers(session: nox.Session) -> None:
    """The tests under AddressSanitizer and UBSan."""
    session.run("ci/sanitizers.sh", *session.posargs, external=True)


@nox.session
def stress(session: nox.Session) -> None:
    """Random calls under random faults; arguments go to the script."""
    session.install(".[test]")
    session.run("python", "ci/stress.py", *session.posargs)


@nox.session
def interpreters(session: nox.Session) -> None:
    """The tests on every supported Python that is installed."""
    session.run("ci/interpreters.sh", *session.posargs, external=True)


@nox.session
def windows(session: nox.Session) -> None:
    """The extensions for Windows, and tests under Wine."""
    session.run("ci/windows.sh", *session.posargs, external=True)


@nox.session
def wheels(session: nox.Session) -> None:
    """Wheels of this system, and the sdist."""
    session.run("ci/wheels.sh", external=True)
