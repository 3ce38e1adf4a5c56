"""A program of the user's with its arguments, as a config names it."""

from __future__ import annotations

import os
from typing import Annotated

from pydantic import AfterValidator
from pydantic_core import PydanticCustomError


def _runnable(command: tuple[str, ...]) -> tuple[str, ...]:
    if command and not command[0].strip():
        raise PydanticCustomError("command", "a program is expected first, such as [./load.sh, --quick]; [] for none")
    for number, argument in enumerate(command):
        if not _can_be_given(argument):
            raise PydanticCustomError(
                "command",
                "argument {number} holds a character that no program can be given (NUL, or half of a surrogate pair)",
                {"number": number},
            )
    return command


def _can_be_given(argument: str) -> bool:
    try:
        return b"\0" not in os.fsencode(argument)
    except UnicodeEncodeError:
        return False


Command = Annotated[tuple[str, ...], AfterValidator(_runnable)]
