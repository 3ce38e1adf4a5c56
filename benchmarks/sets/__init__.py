"""The real data sets on which the quality benchmark compares ways of backfilling. Nothing is downloaded at run time."""

from benchmarks.sets.base import BenchmarkSet, SplitSizes
from benchmarks.sets.load import NAMES, load_set

__all__ = ["NAMES", "BenchmarkSet", "SplitSizes", "load_set"]
