"""python -m pipeline.train JOB.yaml [key=value ...]: train a network, on tiles as on whole images."""

from __future__ import annotations

from pipeline.commands import Parser, run, train


def main() -> int:
    p = Parser(prog="python -m pipeline.train", description=__doc__)
    p.add_argument("job", metavar="JOB.yaml", help="such as jobs/train.yaml, which says what it can hold")
    p.add_argument(
        "overrides", nargs="*", default=[], metavar="key=value", help="laid over the file, as in optimizer.lr=0.001"
    )
    asked = p.parse_args()
    from pipeline.jobfile import load_job
    from pipeline.training_job import TrainJob

    return train(load_job(TrainJob, asked.job, asked.overrides))


if __name__ == "__main__":
    run(main)
