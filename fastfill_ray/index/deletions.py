"""Which ids are deleted: the files of DELETE and UNDELETE, folded in the order of the log, and looked up by row.

Legend: N ids, D deleted ids. A hash is 16 bytes: blake2b(str(id), key=salt).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fastfill_ray.errors import CorruptFile, FileMissing
from fastfill_ray.index.deletion_vector import DeletionVector
from fastfill_ray.log.records import Delete, FileRef, Undelete, Version
from fastfill_ray.storage.arrow import read_table, table_bytes
from fastfill_ray.storage.files import Files
from fastfill_ray.storage.paths import deletion_path
from fastfill_ray.storage.refs import get_verified, put_content
from fastfill_ray.types import I64, U64

_HASH = pa.binary(16)
# On S3 a file is a round trip, and a root that deletes every night has one per night.
_THREADS = 16


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
            CorruptFile, FileMissing: a file is not the one that its record names. The message says what puts it back.
        """
        if not deletions:
            return cls("", pa.nulls(0, _HASH))  # pa.array would import pandas: 0.2 s of a search from the command line
        repairs = [_repair(deletion, deletions[number + 1 :]) for number, deletion in enumerate(deletions)]
        with ThreadPoolExecutor(_THREADS) as pool:
            sets = list(pool.map(partial(_read_hashes, files), deletions, repairs))  # (ids of a record, 2) each
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

    def are_flagged_in(self, version: Version) -> bool:
        """Whether the version's deletion vectors flag the rows that are deleted and no others: then no id is hashed."""
        return bool(len(self)) and version.deletions == self.fingerprint

    def prefixes_of(self, ids: pa.Array) -> U64:
        """The first 8 bytes of the hash of each id (N,): kept, they spare ``rows_of`` to hash the same ids again."""
        return _prefixes(hash_ids(ids, self._salt))

    def rows_of(self, ids: pa.Array, prefixes: U64 | None = None) -> I64:
        """The ascending rows of `ids` (N,) that are deleted. Nothing is looked at while D is 0.

        Args:
            prefixes: ``prefixes_of(ids)`` of this or an earlier state of the same root's deletions. Without them every
                id is hashed (0.7 s per million; with them 0.02 s).
        """
        if not len(self):
            return np.empty(0, np.int64)
        if prefixes is None:
            return _rows_in(hash_ids(ids, self._salt), self._hashes)
        rows = _rows_in(pa.array(prefixes), pa.array(_prefixes(self._hashes)))
        # Prefixes of different ids may be equal.
        return rows[_rows_in(hash_ids(ids.take(pa.array(rows)), self._salt), self._hashes)]


def hidden_in(
    vector: DeletionVector, ids: pa.Array, deleted: Deleted, *, are_flagged: bool, prefixes: U64 | None = None
) -> I64:
    """The ascending rows of a segment that searches skip: superseded ones for good, others while their id is deleted.

    Args:
        vector: of the segment. ids: (N,) of the segment.
        are_flagged: ``deleted.are_flagged_in`` the version: the vector says it all.
        prefixes: see ``Deleted.rows_of``.
    """
    if are_flagged:
        return vector.rows
    return np.union1d(vector.rows[~vector.deleted], deleted.rows_of(ids, prefixes))


def hash_ids(ids: pa.Array, salt: str) -> pa.FixedSizeBinaryArray:
    """The hash of each id (N,). An integer and the string of its digits have the same one; a root has one id type.

    Args:
        ids: (N,) int64 or string.
        salt: 32 hex digits.
    """
    # A copy of a hash takes less time than a new one.
    copy, hashes = hashlib.blake2b(key=bytes.fromhex(salt), digest_size=16).copy, []
    for text in map(str.encode, map(str, ids.to_pylist())):
        of_id = copy()
        of_id.update(text)
        hashes.append(of_id.digest())
    return _hash_array(b"".join(hashes))


def write_ids(files: Files, ids: pa.Array, salt: str) -> FileRef:
    """Store the hashes of `ids` (N,) for a DELETE or UNDELETE; durable when this returns. Equal sets are one file."""
    hashes = _hash_array(b"".join(sorted(set(hash_ids(ids, salt).to_pylist()))))
    return put_content(files, deletion_path, table_bytes(pa.table({"hash": hashes})))


def _hash_array(data: bytes) -> pa.FixedSizeBinaryArray:
    return pa.FixedSizeBinaryArray.from_buffers(_HASH, len(data) // _HASH.byte_width, [None, pa.py_buffer(data)])


def _prefixes(hashes: pa.FixedSizeBinaryArray) -> U64:
    """The first 8 bytes of each hash (N,) that ``_hash_array`` holds."""
    return np.frombuffer(hashes.buffers()[1], np.uint64)[::2].copy()


def _rows_in(values: pa.Array, wanted: pa.Array) -> I64:
    """The ascending rows of `values` (N,) that are among `wanted`."""
    found = pc.is_in(values, value_set=wanted).to_numpy(zero_copy_only=False)
    return np.flatnonzero(found).astype(np.int64, copy=False)


def _repair(deletion: Delete | Undelete, later: Sequence[Delete | Undelete]) -> str:
    """What puts the file of a record back, where `later` ones follow it in the log."""
    words = f"Run `fastfill-ray {deletion.kind.lower()}` again with the same ids: it writes the same file."
    undone = [other for other in later if other.kind != deletion.kind]
    if undone:
        # What is repeated is in force again, also for ids that the log names again later.
        words += f" Then repeat each `{undone[0].kind.lower()}` that came after it."
    return words


def _read_hashes(files: Files, deletion: Delete | Undelete, repair: str) -> U64:
    """The hashes of one record as two numbers each (rows, 2), which are in the order of the bytes."""
    name = f"{files.root}/{deletion.ids.path}"
    try:
        data = get_verified(files, deletion.ids, repair)
    except FileMissing as error:
        raise FileMissing(f"{error} {repair}", *error.paths) from error
    column = read_table(data, name=name, columns=["hash"]).column("hash")
    if column.type != _HASH or column.null_count or len(column) != deletion.rows:
        raise CorruptFile(
            f"{name}: holds {len(column):,} hashes of type {column.type} with {column.null_count:,} nulls, the log "
            f"says {deletion.rows:,} of {_HASH}. Restore the file from a copy."
        )
    words = np.frombuffer(b"".join(column.to_pylist()), ">u8")
    return words.astype(np.uint64).reshape(-1, 2)
