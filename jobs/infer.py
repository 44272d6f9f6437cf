"""python jobs/infer.py JOB.yaml [key=value ...]: predict as a job, on the cluster that it was submitted to or here."""

from __future__ import annotations

from pipeline.commands import Parser, predict, run
from pipeline.config import InferJob
from pipeline.jobfile import load_job


def main() -> int:
    p = Parser(prog="python jobs/infer.py", description=__doc__)
    p.add_argument("job", metavar="JOB.yaml", help="such as jobs/infer.yaml, which says what it can hold")
    p.add_argument(
        "overrides", nargs="*", default=[], metavar="key=value", help="laid over the file, as in image=big.tif"
    )
    asked = p.parse_args()
    job = load_job(InferJob, asked.job, asked.overrides)
    from pipeline import api

    images, folder = api.asked_for(job.image)
    print(f"{len(images)} image{'s' * (len(images) > 1)} into {job.output}, engine {job.engine}", flush=True)
    return predict(images, job.output, job.network, folder=folder, verify=job.verify, given=job.options())


if __name__ == "__main__":
    run(main)
