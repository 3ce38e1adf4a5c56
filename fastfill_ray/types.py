"""Each vocabulary and array type once, the frozen model behind records and artefacts, and names made from content."""

from __future__ import annotations

import hashlib
import json
import re
from typing import Annotated, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, BaseModel, ConfigDict

# How scores compare vectors, what stored ones are made of, what an id is, and the words of design section 2 that are
# chosen among.
Metric = Literal["cosine", "ip", "l2"]
VectorDtype = Literal["float16", "float32", "float64", "bfloat16", "int8", "uint8"]
IdType = Literal["int64", "string"]
Relevance = Literal["label", "qrels", "log", "new_model"]
Scope = Literal["audit", "gallery"]
StaleMode = Literal["aligned", "fused"]
Split = Literal["train", "calibration", "audit"]
SPLITS: tuple[Split, ...] = get_args(Split)

# Arrays by element type; a docstring says the shape.
F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
U64 = NDArray[np.uint64]
Bools = NDArray[np.bool_]
Objects = NDArray[np.object_]

_SAFE_PATH = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.=-]*(/[A-Za-z0-9_][A-Za-z0-9_.=-]*)*")


def check_path(path: str) -> str:
    """A relative path of plain names: it cannot leave the output root, whatever store the root is in."""
    if len(path) > 512 or not _SAFE_PATH.fullmatch(path):
        raise ValueError(f"{path!r} is not a plain relative path")
    return path


RelativePath = Annotated[str, AfterValidator(check_path)]


class Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def canonical(value: object) -> bytes:
    """Canonical JSON: sorted keys, no spaces, UTF-8, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def fingerprint(value: object) -> str:
    """First 16 hex digits of the sha256 of the canonical JSON: names of stage outputs and plans."""
    return hashlib.sha256(canonical(value)).hexdigest()[:16]
