"""The job: `python jobs/backfill.py --config FILE [--set a.b=c ...] [--until plan|version0|wave:K]`.

The same command resumes. On a cluster: `ray job submit --working-dir . -- python jobs/backfill.py --config FILE`.
"""

import sys

from fastfill_ray.cli import job

if __name__ == "__main__":
    sys.exit(job())
