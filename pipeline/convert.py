"""python -m pipeline.convert IMAGE OUT.ome.zarr: any image as a sharded OME-Zarr 0.5 with its pyramid."""

from __future__ import annotations

from pathlib import Path

from pipeline.commands import Parser, progress, resumable, run


def main() -> int:
    p = Parser(prog="python -m pipeline.convert", description=__doc__)
    p.add_argument("image", metavar="IMAGE", help="an image file or URL, of any kind that infer takes")
    p.add_argument("output", metavar="OUT.ome.zarr", help="where the copy goes")
    p.add_argument("--axes", help="axes of the image where it does not name them, such as CYX")
    p.add_argument("--level", type=int, help="resolution level of the image, 0 the finest")
    p.add_argument("--workers", type=int, help="processes (default: as many as CPUs and memory allow)")
    p.add_argument("--memory", help="what one worker may use, such as 2GB (default)")
    p.add_argument("--overwrite", action="store_true", help="begin anew in place of an output that is there")
    given = {k: v for k, v in vars(p.parse_args()).items() if v is not None}
    resumable(given["overwrite"])
    from pipeline import api

    image, output = given.pop("image"), given.pop("output")
    template = api.template()  # before there are threads: progress on a terminal has one
    with progress(Path(output).name) as report:
        result = api.convert(image, output, report=report, template=template, **given)
    if result.failures:
        raise RuntimeError(f"{output}: " + "; ".join(result.failures))
    plan, units = result.plan, result.plan.units
    done = "finished already, nothing to do" if result.resumed == units else "done"
    before = f", {result.resumed} of {units} units were done before" if 0 < result.resumed < units else ""
    print(f"{output}: {done}: {plan.tiles} tiles, {len(plan.layout.shapes)} levels{before}")
    return 0


if __name__ == "__main__":
    run(main)
