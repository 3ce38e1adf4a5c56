"""What says whether an item is what it was: digests of payload, version and what stands beside it, kept per part.

They are taken while the ids of a file are checked, once there is something to compare with; else when it is compared.

Legend: N items of a part.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import islice

import pyarrow as pa

from fastfill_ray.inputs.changes import payload_digests, version_digests
from fastfill_ray.inputs.gallery import Source, stored_beside
from fastfill_ray.inputs.parquet import Span, in_one_pass, read_rows, read_spans
from fastfill_ray.log.records import FileRef
from fastfill_ray.stages.context import Context
from fastfill_ray.stages.ledger import LedgerPart
from fastfill_ray.storage.arrow import table_bytes
from fastfill_ray.storage.files import Files
from fastfill_ray.storage.paths import stage_folder, unit_output, unit_receipt
from fastfill_ray.storage.receipts import Receipt, find_receipts, put_receipt
from fastfill_ray.storage.refs import put_content
from fastfill_ray.types import fingerprint


@dataclass(frozen=True)
class Digests:
    """How digests are taken, and where they are kept.

    payloads: whether payloads are read also where a version stands for them.
    """

    source: Source
    payloads: bool

    @property
    def reads_payloads(self) -> bool:
        """Whether payloads are read for every row; else for those without a version."""
        return self.payloads or self.source.config.version_column is None

    @cached_property
    def columns(self) -> list[str]:
        """The columns that are read for them."""
        config = self.source.config
        beside = [config.version_column, config.label_column, config.group_column]
        payloads = config.payload_columns if self.reads_payloads else ()
        return [*(name for name in beside if name is not None), *payloads]

    @cached_property
    def folder(self) -> str:
        config = self.source.config
        named = [config.payload_columns, config.version_column, config.label_column, config.group_column]
        return stage_folder("changes", fingerprint([*named, self.source.label_kind, self.reads_payloads]))

    def of_chunk(self, span: Span, table: pa.Table) -> pa.Table:
        """Columns payload, version, beside of the rows of a chunk, from a table that has ``columns``."""
        config = self.source.config
        nothing = pa.nulls(table.num_rows, pa.binary(16))
        version = nothing if config.version_column is None else version_digests(table, config.version_column)
        stored = stored_beside(table, self.source, span)
        beside = payload_digests(with_rows(stored, table.num_rows), list(stored))
        if set(config.payload_columns) <= set(self.columns):
            payload = payload_digests(table, config.payload_columns)
        elif version.null_count:  # a row without a version goes by its payload
            again = read_rows(self.source.store, span.file, config.payload_columns, start=span.start, rows=span.rows)
            payload = payload_digests(again, config.payload_columns)
        else:
            payload = nothing
        return pa.table({"payload": payload, "version": version, "beside": beside})

    def put(self, files: Files, part: LedgerPart, chunks: Sequence[pa.Table], seconds: float) -> Receipt:
        """Keep the digests of a part, chunk by chunk.

        Args:
            seconds: that it took to have them.
        """
        data = table_bytes(pa.concat_tables(chunks))
        output = put_content(files, partial(unit_output, self.folder, part.unit), data)
        receipt = Receipt(unit=part.unit, outputs=(output,), rows=part.rows, seconds=seconds)
        return put_receipt(files, unit_receipt(self.folder, part.unit), receipt)


def digest_parts(context: Context, parts: Sequence[LedgerPart], digests: Digests) -> dict[str, FileRef]:
    """{unit of a part: file with columns payload, version, beside (N,)}, read once and kept."""
    receipts = find_receipts(context.files, digests.folder, {part.unit for part in parts})
    missing = [part for part in parts if part.unit not in receipts]
    if missing:
        rows = sum(part.rows for part in parts)
        groups = in_one_pass(missing, lambda part: part.span)
        done = rows - sum(part.rows for part in missing)
        with context.progress.stage("changes", rows, "items", done=done) as bar:
            for receipt in context.engine.run_units(partial(_digest_parts, context.files, digests), groups):
                receipts[receipt.unit] = receipt
                bar.advance(receipt.rows)
    return {part.unit: receipts[part.unit].outputs[0] for part in parts}


def _digest_parts(files: Files, digests: Digests, parts: Sequence[LedgerPart]) -> Iterator[Receipt]:
    spans = [span for part in parts for span in part.chunk_spans]
    tables = read_spans(digests.source.store, spans, digests.columns)
    chunks = (digests.of_chunk(span, table) for span, table in zip(spans, tables, strict=True))
    for part in parts:
        start = time.monotonic()
        of_part = list(islice(chunks, len(part.chunk_rows)))
        yield digests.put(files, part, of_part, time.monotonic() - start)


def with_rows(columns: Mapping[str, pa.Array | pa.ChunkedArray], rows: int) -> pa.Table:
    """A table of so many rows, also where there are no columns."""
    return pa.table({**columns, "": pa.nulls(rows)})
