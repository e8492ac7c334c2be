"""All that does not fit about a user's files, told at once."""

from collections.abc import Sequence

SHOWN = 10  # problems that an error lists


def check_none(what: str, problems: Sequence[str]) -> None:
    """ValueError that begins with `what`, such as "FOLDER cannot be used", and lists the problems, if there are any."""
    if problems:
        listed = [*problems[:SHOWN], *([f"... and {len(problems) - SHOWN} more"] if len(problems) > SHOWN else [])]
        raise ValueError("\n- ".join([f"{what}, {len(problems)} problems:", *listed]))
