"""The one kind of error that is the user's to mend."""

import contextlib
from collections.abc import Iterator


class InputError(ValueError):
    """Bad input: one clear line that says what was wrong, where, and what to do."""


@contextlib.contextmanager
def as_input_error() -> Iterator[None]:
    """Within it, the ValueErrors by which the library refuses its arguments are bad input."""
    try:
        yield
    except InputError:
        raise
    except ValueError as error:
        raise InputError(str(error)) from error
