"""Which segments make a version: those of its wave, built; those of the version before, looked at and kept.

A version names only what was verified when it was made, or what has had the same size and tag ever since. What a record
names is never written again: a damaged segment is built under a new name, and the versions that name it stay damaged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

from fastfill_ray.errors import CorruptFile, FileMissing, InputChanged
from fastfill_ray.log.records import Plan, Segment, Version
from fastfill_ray.ordering.ids import combine_digests
from fastfill_ray.stages.build import Bucket, BucketWork, BuildJob, build, build_bucket
from fastfill_ray.stages.context import Context
from fastfill_ray.storage.files import Files
from fastfill_ray.storage.receipts import Receipt
from fastfill_ray.storage.refs import is_unchanged, tagged

# On S3 each look at a segment is two round trips.
_THREADS = 16


@dataclass(frozen=True)
class Assembly:
    """A version's segments, ordered by bucket, wave and state; and the rows whose stale segments are gone for good."""

    segments: list[Segment]
    lost_rows: int = 0


@dataclass(frozen=True)
class Assembler:
    """What every version of a plan is put together with. suspects: paths that were found damaged by somebody else."""

    context: Context
    job: BuildJob
    buckets: Mapping[int, Bucket]
    suspects: Set[str]

    def first(self, receipts: Mapping[str, Receipt]) -> Assembly:
        """Version 0: the new segments of the pairs, and stale ones of every wave.

        Args:
            receipts: {unit: receipt} of the pairs.
        """
        everything = tuple(range(self.job.num_waves + 2))
        work = [_work(number, bucket, 0, receipts, everything) for number, bucket in self.buckets.items()]
        return Assembly(build(self.context, self.job, work, "build 0"))

    def after(self, wave: int, versions: Sequence[Version], receipts: Mapping[int, Mapping[str, Receipt]]) -> Assembly:
        """The version after `wave`: its stale segments are replaced by new ones, and the others kept.

        A wave with bad rows keeps a residual stale segment of those. Damaged segments are built again.

        Args:
            versions: of the plan, in wave order.
            receipts: {wave: {unit: receipt}} of this wave, and of earlier ones as far as they are known.

        Raises:
            CorruptFile: a damaged segment is of an earlier wave whose receipts are not known; names all of those.
        """
        wanted = [segment for segment in versions[-1].segments if (segment.wave, segment.state) != (wave, "stale")]
        kept, damaged = self._look_at(wanted)
        unknown = [segment for segment in damaged if segment.wave < wave and segment.wave not in receipts]
        if unknown:
            paths = [segment.index.path for segment in unknown]
            beside = "its ids" if unknown[0].deletion is None else "its ids or its deletion vector"
            raise CorruptFile(f"{self.context.files.root}/{paths[0]}, or {beside}: damaged or gone", *paths)
        for segment in damaged:
            self._say(segment, versions)
        work = [_work(number, bucket, wave, receipts[wave]) for number, bucket in self.buckets.items()]
        built = build(self.context, self.job, [item for item in work if item.receipts[wave]], f"build {wave}")
        again = self._again(wave, kept, damaged, receipts) if damaged else Assembly(kept)
        segments = sorted([*again.segments, *built], key=lambda segment: (segment.bucket, segment.wave, segment.state))
        return Assembly(segments, again.lost_rows)

    def _look_at(self, segments: Sequence[Segment]) -> tuple[list[Segment], list[Segment]]:
        """(Whole segments, damaged ones). Only those whose size or tag differ from the recorded ones are read."""
        files = self.context.files
        with ThreadPoolExecutor(_THREADS) as pool:
            unchanged = list(pool.map(partial(_is_unchanged, files, self.suspects), segments))
        kept = [segment for segment, same in zip(segments, unchanged, strict=True) if same]
        doubtful = [segment for segment, same in zip(segments, unchanged, strict=True) if not same]
        damaged = []
        for segment, whole in self.context.engine.run_tasks(partial(_verified, files), doubtful, name="verify segment"):
            if whole is None:
                damaged.append(segment)
            else:
                kept.append(whole)
        return kept, damaged

    def _say(self, segment: Segment, versions: Sequence[Version]) -> None:
        path = segment.index.path
        naming = ", ".join(str(v.version) for v in versions if any(s.index.path == path for s in v.segments))
        any_of = " or ".join(file.path for file in segment.files)
        self.context.progress.say(
            f"{any_of} is damaged or gone: built again under a new name for this version. What "
            f"names the old one stays damaged (version {naming}): fastfill-ray verify tells more."
        )

    def _again(
        self,
        wave: int,
        kept: Sequence[Segment],
        damaged: Sequence[Segment],
        receipts: Mapping[int, Mapping[str, Receipt]],
    ) -> Assembly:
        """The kept segments, with new ones for the damaged: of a bucket and wave all of them."""
        context, job, buckets = self.context, self.job, self.buckets
        places = sorted({(segment.bucket, segment.wave) for segment in damaged})
        embedded = [_work(number, buckets[number], place, receipts[place]) for number, place in places if place < wave]
        rebuilt = build(context, job, embedded, "build again") if embedded else []
        stale = [BucketWork(number, buckets[number], (), (place,), {}) for number, place in places if place > wave]
        lost = set()
        for item, outcome in context.engine.run_tasks(partial(_build_stale, job), stale, name="build again"):
            if isinstance(outcome, str):
                lost.add((item.bucket, *item.stale_waves))
                context.progress.say(
                    f"items of wave {item.stale_waves[0]} are absent until they are embedded: {outcome}"
                )
            else:
                rebuilt += outcome
        replaced = [*damaged, *(segment for segment in kept if (segment.bucket, segment.wave) in places)]
        _check_same([s for s in replaced if (s.bucket, s.wave) not in lost], rebuilt)
        kept = [segment for segment in kept if (segment.bucket, segment.wave) not in places]
        return Assembly([*kept, *rebuilt], sum(s.plan_rows for s in replaced if (s.bucket, s.wave) in lost))


def missing_files(files: Files, version: Version) -> list[str]:
    """Files of a version's segments that are absent or of another size than recorded; nothing is read."""
    references = [reference for segment in version.segments for reference in segment.files]
    with ThreadPoolExecutor(_THREADS) as pool:
        looked_up = zip(references, pool.map(files.stat, (each.path for each in references)), strict=True)
        return [each.path for each, now in looked_up if now is None or now.size != each.size]


def _work(
    number: int, bucket: Bucket, wave: int, receipts: Mapping[str, Receipt], stale_waves: tuple[int, ...] | None = None
) -> BucketWork:
    """A bucket's new segment of a wave, and stale ones: of the rows that were quarantined, or of `stale_waves`."""
    done = {unit: receipts[unit] for place in bucket if (unit := place.chunk.unit) in receipts}
    if stale_waves is not None:
        return BucketWork(number, bucket, (wave,), stale_waves, {wave: done})
    residual = (wave,) if any(receipt.quarantined for receipt in done.values()) else ()
    return BucketWork(
        number, tuple(place for place in bucket if place.chunk.unit in done), (wave,), residual, {wave: done}
    )


def _is_unchanged(files: Files, suspects: Set[str], segment: Segment) -> bool:
    return all(reference.path not in suspects and is_unchanged(files, reference) for reference in segment.files)


def _verified(files: Files, segment: Segment) -> Segment | None:
    """The segment with its files' tags as they are now; None if one of them is damaged or gone."""
    try:
        whole: dict[str, object] = {"index": tagged(files, segment.index), "ids": tagged(files, segment.ids)}
        if (deletion := segment.deletion) is not None:
            whole["deletion"] = deletion.model_copy(update={"file": tagged(files, deletion.file)})
        return segment.model_copy(update=whole)
    except (CorruptFile, FileMissing):
        return None


def _build_stale(job: BuildJob, work: BucketWork) -> list[Segment] | str:
    """A stale segment from scores and the pinned file, or why it cannot be had any more."""
    try:
        return build_bucket(job, work)
    except InputChanged as error:
        return str(error)


def _check_same(replaced: Sequence[Segment], rebuilt: Sequence[Segment]) -> None:
    """What is built again holds the items of the plan that were there."""
    was, is_now = (
        (sum(segment.plan_rows for segment in part), combine_digests(segment.plan_ids_digest for segment in part))
        for part in (replaced, rebuilt)
    )
    if was != is_now:
        raise CorruptFile(
            f"{replaced[0].index.path}: built again it holds {is_now[0]} rows (digest {is_now[1]}), recorded are "
            f"{was[0]} ({was[1]}). Nothing was committed. Restore it from a copy, or choose another output."
        )


def check_complete(plan: Plan, segments: Sequence[Segment], may_be_absent: int) -> None:
    """Every item of the plan exactly once, superseded rows left out: by count, and by digest where none is absent.

    Args:
        may_be_absent: rows without a stale vector, that are not embedded yet.

    Raises:
        CorruptFile: items are missing or held twice.
    """
    rows = sum(segment.plan_rows for segment in segments)
    absent = plan.rows - rows
    if not 0 <= absent <= may_be_absent:
        raise CorruptFile(
            f"plan {plan.plan}: the segments hold {rows} rows, {plan.rows} are planned and at most "
            f"{may_be_absent} may be absent. Nothing was committed."
        )
    digest = combine_digests(segment.plan_ids_digest for segment in segments)
    if absent == 0 and digest != plan.ids_digest:
        raise CorruptFile(
            f"plan {plan.plan}: the segments' ids digest is {digest}, planned is {plan.ids_digest}. "
            "Nothing was committed."
        )
