"""The one exception for what a user can mend: it ends a script with its message and exit code 2, no traceback."""

from __future__ import annotations


class InputError(ValueError):
    """Input was refused. The message says what was wrong, where, and what was expected, for all offenders at once."""

    @classmethod
    def of(cls, title: str, problems: list[str]) -> InputError:
        """Builds one error from many problems.

        Args:
            title: what was refused, without a closing stop, for example ``train.csv: rows refused``.
            problems: one line each, naming file, row or field, with got and expected.
        """
        lines = "".join(f"\n  - {problem}" for problem in problems)
        return cls(f"{title} ({len(problems)}):{lines}")
