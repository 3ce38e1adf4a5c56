"""Which segments make a version: those of its wave, built; those of the version before, looked at and kept.

A version names only what was verified when it was made, or what has had the same size and tag ever since. What a record
names is never written again: a damaged segment is built under a new name, and the versions that name it stay damaged.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from functools import partial

from fastfill_ray.errors import CorruptFile, FileMissing
from fastfill_ray.index.segment_list import segments_of
from fastfill_ray.log.records import Plan, Segment, Version
from fastfill_ray.ordering.ids import combine_digests
from fastfill_ray.stages.build import Bucket, BucketWork, BuildJob, build
from fastfill_ray.stages.context import Context
from fastfill_ray.storage.files import Files
from fastfill_ray.storage.overlap import read_ahead
from fastfill_ray.storage.receipts import Receipt
from fastfill_ray.storage.refs import is_unchanged, tagged


@dataclass(frozen=True)
class Assembler:
    """What every version of a plan is put together with. suspects: paths that were found damaged by somebody else."""

    context: Context
    job: BuildJob
    buckets: Mapping[int, Bucket]
    suspects: Set[str]

    def first(
        self, plan: Plan, inherited: Sequence[Segment], receipts: Mapping[int, Mapping[str, Receipt]]
    ) -> list[Segment]:
        """The first version of a plan: what it begins with, and what has to be built for it.

        New segments of the pairs where the order is made anew, and of items with another label; stale ones of every
        wave of the buckets that came.

        Args:
            receipts: {wave: {unit: receipt}} of what is new in this version.

        Raises:
            CorruptFile: a segment that the plan begins with is damaged and cannot be built again.
        """
        kept, damaged = self._look_at(inherited)
        for segment in damaged:
            self._say(segment, ())
        again = self._again(0, kept, damaged, receipts) if damaged else kept
        wave = plan.newest_wave(0)
        done = {each: receipts.get(each, {}) for each in sorted({0, wave})}
        work = []
        for number, bucket in self.buckets.items():
            stale = _stale_waves(bucket, plan) if number >= plan.first_bucket else ()
            places = bucket if stale else _new_places(bucket, done)
            of_bucket = {each: _of_bucket(bucket, found) for each, found in done.items()}
            work += _shared(BucketWork(number, places, tuple(done), stale, of_bucket))
        built = build(self.context, self.job, [item for item in work if _has_work(item)], f"build {wave}")
        return _ordered([*again, *built])

    def after(
        self, wave: int, versions: Sequence[Version], receipts: Mapping[int, Mapping[str, Receipt]]
    ) -> list[Segment]:
        """The version after `wave`: its stale segments are replaced by new ones, and the others kept.

        A wave with bad rows keeps a residual stale segment of those. Damaged segments are built again.

        Args:
            versions: of the plan, in wave order.
            receipts: {wave: {unit: receipt}} of this wave, and of earlier ones as far as they are known.

        Raises:
            CorruptFile: a damaged segment is of an earlier wave whose receipts are not known; names all of those.
        """
        there = segments_of(self.context.files, versions[-1])
        wanted = [segment for segment in there if (segment.wave, segment.state) != (wave, "stale")]
        kept, damaged = self._look_at(wanted)
        unknown = [segment for segment in damaged if segment.wave < wave and segment.wave not in receipts]
        if unknown:
            paths = [segment.index.path for segment in unknown]
            beside = "its ids" if unknown[0].deletion is None else "its ids or its deletion vector"
            raise CorruptFile(f"{self.context.files.root}/{paths[0]}, or {beside}: damaged or gone", *paths)
        for segment in damaged:
            self._say(segment, versions)
        work = [_work(number, bucket, wave, receipts[wave]) for number, bucket in self.buckets.items()]
        built = build(self.context, self.job, [item for item in work if _has_work(item)], f"build {wave}")
        again = self._again(wave, kept, damaged, receipts) if damaged else kept
        return _ordered([*again, *built])

    def _look_at(self, segments: Sequence[Segment]) -> tuple[list[Segment], list[Segment]]:
        """(Whole segments, damaged ones). Only those whose size or tag differ from the recorded ones are read."""
        files = self.context.files
        unchanged = list(read_ahead(partial(_is_unchanged, files, self.suspects), segments))
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
        files = self.context.files
        naming = ", ".join(str(v.version) for v in versions if any(s.index.path == path for s in segments_of(files, v)))
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
    ) -> list[Segment]:
        """The kept segments, with new ones for the damaged: of a bucket and wave all of them."""
        context, job, buckets = self.context, self.job, self.buckets
        places = sorted({(segment.bucket, segment.wave) for segment in damaged})
        embedded = [_work(number, buckets[number], place, receipts[place]) for number, place in places if place < wave]
        rebuilt = build(context, job, embedded, "build again") if embedded else []
        stale = [BucketWork(number, buckets[number], (), (place,), {}) for number, place in places if place > wave]
        rebuilt += build(context, job, stale, "build again") if stale else []
        _check_same([*damaged, *(segment for segment in kept if (segment.bucket, segment.wave) in places)], rebuilt)
        return [*(segment for segment in kept if (segment.bucket, segment.wave) not in places), *rebuilt]


def missing_files(files: Files, version: Version) -> list[str]:
    """Files of a version's segments that are absent or of another size than recorded; nothing is read."""
    references = [version.segments]
    if files.stat(version.segments.path) is not None:
        references += [reference for segment in segments_of(files, version) for reference in segment.files]
    looked_up = zip(references, read_ahead(files.stat, (each.path for each in references)), strict=True)
    return [each.path for each, now in looked_up if now is None or now.size != each.size]


def _work(number: int, bucket: Bucket, wave: int, receipts: Mapping[str, Receipt]) -> BucketWork:
    """A bucket's new segment of a wave, and a stale one of the rows that were quarantined."""
    done = _of_bucket(bucket, receipts)
    residual = (wave,) if any(receipt.quarantined for receipt in done.values()) else ()
    return BucketWork(number, _new_places(bucket, {wave: done}), (wave,), residual, {wave: done})


def _new_places(bucket: Bucket, receipts: Mapping[int, Mapping[str, Receipt]]) -> Bucket:
    """The chunks of a bucket of which something becomes new in the waves of `receipts`."""
    return tuple(
        place
        for place in bucket
        if any(place.chunk.unit in found or place.work.known[wave] for wave, found in receipts.items())
    )


def _stale_waves(bucket: Bucket, plan: Plan) -> tuple[int, ...]:
    """The waves whose rows may be stale in a bucket before they come; none of a plan that begins with nothing stale.

    Where the order is made anew, these are also the pairs that could not be embedded.
    """
    first = 0 if plan.follows is None else 1
    return tuple(
        wave
        for wave in range(first, len(plan.waves) + 2)
        if any(place.work.rows[wave] > place.work.absent[wave] for place in bucket)
    )


def _shared(work: BucketWork) -> list[BucketWork]:
    """A bucket's work as that of up to two tasks: a gallery may be one bucket, and maps take longer than reading does.

    The stale segment of most rows stands alone: only a wave that is new as well asks what was embedded for it.
    """
    rows = {wave: sum(place.work.rows[wave] for place in work.chunks) for wave in work.stale_waves}
    largest = max(rows, key=lambda wave: rows[wave], default=0)
    if len(rows) < 2 or largest in work.new_waves:
        return [work]
    rest = tuple(wave for wave in work.stale_waves if wave != largest)
    alone = BucketWork(work.bucket, work.chunks, (), (largest,), {})
    return [replace(work, stale_waves=rest), alone]


def _of_bucket(bucket: Bucket, receipts: Mapping[str, Receipt]) -> dict[str, Receipt]:
    return {unit: receipts[unit] for place in bucket if (unit := place.chunk.unit) in receipts}


def _has_work(item: BucketWork) -> bool:
    known = any(place.work.known[wave] for place in item.chunks for wave in item.new_waves)
    return bool(item.stale_waves) or known or any(item.receipts.values())


def _ordered(segments: Iterable[Segment]) -> list[Segment]:
    """By bucket, wave and state; several of one place, which plans before have left, by their names."""
    return sorted(segments, key=lambda s: (s.bucket, s.wave, s.state, s.index.path))


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


def check_complete(plan: Plan, segments: Sequence[Segment], absent_rows: int, absent_digest: str) -> None:
    """Every item of the plan exactly once, superseded rows left out: segments and absent items sum to the plan.

    Args:
        absent_rows, absent_digest: the rows without a stale vector that are not embedded yet, and their ids digest.

    Raises:
        CorruptFile: items are missing or held twice.
    """
    rows = sum(segment.plan_rows for segment in segments) + absent_rows
    digest = combine_digests([absent_digest, *(segment.plan_ids_digest for segment in segments)])
    if (rows, digest) != (plan.rows, plan.ids_digest):
        raise CorruptFile(
            f"plan {plan.plan}: the segments and {absent_rows} absent items come to {rows} items (digest {digest}), "
            f"planned are {plan.rows} ({plan.ids_digest}). Nothing was committed."
        )
