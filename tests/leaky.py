"""An embedder that tells its secrets, in a module that a worker imports in no time."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

import numpy as np

from tests import synthetic

TOKEN, PASSWORD, USER, VARIABLE, QUERY = (
    f"Canary{name}-91x/+{name}" for name in ("Token", "Password", "User", "Variable", "Query")
)


class Leaky(synthetic.StubEmbedder):
    """Puts all that it knows into its exceptions."""

    def __init__(self, control: str, token: str, login: dict[str, str], builds: bool = True) -> None:
        super().__init__(control)
        self._secrets = f"{token} {login} {quote(login['password'], safe='')}"
        os.environ["LEAKY_API_KEY"] = VARIABLE
        if not builds:
            raise ValueError(self._said())

    def _said(self) -> str:
        return (
            f"\x1b[2Jno\n\u202eaccess: {self._secrets} https://{quote(QUERY, safe='')}@host/x https://h/x?sig={QUERY} "
            f"{VARIABLE} Authorization: Bearer {QUERY}"
        )

    def __call__(self, batch: dict[str, Sequence[Any]], role: Any) -> np.ndarray:
        try:
            return super().__call__(batch, role)
        except ValueError as error:
            raise RuntimeError(self._said()) from error
