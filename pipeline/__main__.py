"""python -m pipeline: the commands there are."""

import sys

COMMANDS = """\
python -m pipeline.infer IMAGE [-o OUT]      predict: one image, or many into a folder
python -m pipeline.train JOB.yaml            train a network, on tiles as on whole images
python -m pipeline.verify OUT...             prove that outputs have no seams
python -m pipeline.convert IMAGE OUT         copy any image into a sharded OME-Zarr with its pyramid
python -m pipeline.export NETWORK OUT.pt2    write a network as a program that runs without this package
Each takes --help."""

if __name__ == "__main__":
    if sys.argv[1:] not in ([], ["-h"], ["--help"]):
        print(f"python -m pipeline {sys.argv[1]}: there is no such command, see python -m pipeline", file=sys.stderr)
        sys.exit(2)
    print(COMMANDS)
