"""python jobs/train.py JOB.yaml [key=value ...]: train as a job, on the cluster that it was submitted to or here."""

from __future__ import annotations

from pipeline.commands import Parser, run, train
from pipeline.jobfile import load_job
from pipeline.trainjob import TrainJob


def main() -> int:
    p = Parser(prog="python jobs/train.py", description=__doc__)
    p.add_argument("job", metavar="JOB.yaml", help="such as jobs/train.yaml, which says what it can hold")
    p.add_argument("overrides", nargs="*", metavar="key=value", help="laid over the file, as in optimizer.lr=0.001")
    asked = p.parse_args()
    return train(load_job(TrainJob, asked.job, asked.overrides))


if __name__ == "__main__":
    run(main)
