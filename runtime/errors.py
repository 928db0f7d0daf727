"""The one exception for what a user can mend: it ends a script with its message and exit code 2, no traceback."""

from typing import Any, Self


class InputError(ValueError):
    """Input was refused. The message says what was wrong, where, and what was expected, for all offenders at once."""

    @classmethod
    def of(cls, title: str, problems: list[str]) -> Self:
        """One error from many problems, a line each, under a title without a closing stop."""
        lines = "".join(f"\n  - {problem}" for problem in problems)
        return cls(f"{title} ({len(problems)}):{lines}")

    def _render_traceback_(self) -> list[str]:
        """What IPython shows in the place of a traceback."""
        return [f"error: {self}"]


class InputWarning(UserWarning):
    """Input was accepted, and something about it has to be said; scripts print its message alone."""


def differences(owner: str, theirs: dict[str, Any], mine: dict[str, Any]) -> list[str]:
    """One line, for `InputError.of`, for each of this command's fields that `owner` has with another value or lacks."""
    return [
        f"{name}: the {owner} has {theirs.get(name)!r}, this command {value!r}"
        for name, value in mine.items()
        if theirs.get(name) != value
    ]
