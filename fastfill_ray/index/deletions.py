"""Which ids are deleted: the files of DELETE and UNDELETE, folded in the order of the log, and looked up by row.

Legend: N ids, D deleted ids. A hash is 16 bytes: blake2b(str(id), key=salt).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fastfill_ray.errors import CorruptFile
from fastfill_ray.log.records import Delete, FileRef, Undelete
from fastfill_ray.storage.arrow import read_table, table_bytes
from fastfill_ray.storage.files import Files
from fastfill_ray.storage.paths import deletion_path
from fastfill_ray.storage.refs import get_verified, put_content
from fastfill_ray.types import I64, U64

_HASH = pa.binary(16)


class Deleted:
    """The ids that are deleted by a state of the log: those whose last mention in its deletions is a DELETE.

    Args:
        salt: of all hashes, see ``log.records``.
        hashes: (D,) fixed_size_binary(16), ascending and unique.
    """

    def __init__(self, salt: str, hashes: pa.FixedSizeBinaryArray) -> None:
        self._salt, self._hashes = salt, hashes

    @classmethod
    def read(cls, files: Files, deletions: Sequence[Delete | Undelete]) -> Deleted:
        """What is in force after `deletions`, ``State.deletions``. Without any, nothing is read.

        Raises:
            CorruptFile, FileMissing: a file is not the one that its record names. To delete, or undelete, the same ids
                again puts the same file back.
        """
        if not deletions:
            return cls("", pa.array([], _HASH))
        sets = [_read_hashes(files, deletion) for deletion in deletions]  # (ids of a record, 2) each
        words = np.concatenate(sets)
        in_force = np.repeat([isinstance(deletion, Delete) for deletion in deletions], [len(words) for words in sets])
        order = np.lexsort((words[:, 1], words[:, 0]))  # stable: equal hashes stay in the order of the log
        words, in_force = words[order], in_force[order]
        is_last = np.append((words[1:] != words[:-1]).any(axis=1), True)
        return cls(deletions[0].salt, _hash_array(words[is_last & in_force].astype(">u8").tobytes()))

    def __len__(self) -> int:
        """Ids that are deleted, D; a version need not hold any of them."""
        return len(self._hashes)

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits that name what is in force: the same for the same ids, by whatever records; "" for none."""
        if not len(self):
            return ""
        return hashlib.sha256(self._salt.encode() + b"".join(self._hashes.to_pylist())).hexdigest()[:16]

    def rows_of(self, ids: pa.Array) -> I64:
        """The ascending rows of `ids` (N,) that are deleted. Costs one hash per id, and nothing while D is 0."""
        if not len(self):
            return np.empty(0, np.int64)
        is_deleted = pc.is_in(hash_ids(ids, self._salt), value_set=self._hashes)
        return np.flatnonzero(is_deleted.to_numpy(zero_copy_only=False)).astype(np.int64, copy=False)


def hash_ids(ids: pa.Array, salt: str) -> pa.FixedSizeBinaryArray:
    """The hash of each id (N,). An integer and the string of its digits have the same one; a root has one id type.

    Args:
        ids: (N,) int64 or string.
        salt: 32 hex digits.
    """
    key, blake2b = bytes.fromhex(salt), hashlib.blake2b
    return _hash_array(b"".join(blake2b(str(i).encode(), key=key, digest_size=16).digest() for i in ids.to_pylist()))


def write_ids(files: Files, ids: pa.Array, salt: str) -> FileRef:
    """Store the hashes of `ids` (N,) for a DELETE or UNDELETE; durable when this returns. Equal sets are one file."""
    hashes = _hash_array(b"".join(sorted(set(hash_ids(ids, salt).to_pylist()))))
    return put_content(files, deletion_path, table_bytes(pa.table({"hash": hashes})))


def _hash_array(data: bytes) -> pa.FixedSizeBinaryArray:
    return pa.FixedSizeBinaryArray.from_buffers(_HASH, len(data) // _HASH.byte_width, [None, pa.py_buffer(data)])


def _read_hashes(files: Files, deletion: Delete | Undelete) -> U64:
    """The hashes of one record as two numbers each (rows, 2), which are in the order of the bytes."""
    name = f"{files.root}/{deletion.ids.path}"
    column = read_table(get_verified(files, deletion.ids), name=name, columns=["hash"]).column("hash")
    if column.type != _HASH or column.null_count or len(column) != deletion.rows:
        raise CorruptFile(
            f"{name}: holds {len(column):,} hashes of type {column.type} with {column.null_count:,} nulls, the log "
            f"says {deletion.rows:,} of {_HASH}. Restore the file from a copy."
        )
    words = np.frombuffer(b"".join(column.to_pylist()), ">u8")
    return words.astype(np.uint64).reshape(-1, 2)
