"""python jobs/train.py JOB.yaml [key=value ...]: train as a job, on the cluster that it was submitted to or here."""

from __future__ import annotations

import runpy

if __name__ == "__main__":
    runpy.run_module("pipeline.train", run_name="__main__")  # importing it would hide the function of that name
