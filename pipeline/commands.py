"""What the commands share: one-line errors, exit statuses, progress on a terminal or in a log."""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

LOG_EVERY = 10.0


class Parser(argparse.ArgumentParser):
    """Argument errors are one line and status 2."""

    def error(self, message: str) -> NoReturn:
        print(f"{self.prog}: {message} (see --help)", file=sys.stderr)
        raise SystemExit(2)


def run(main: Callable[[], int]) -> NoReturn:
    """Run a command: 2 for what the user can mend, 1 for the rest, 130 and 143 after SIGINT and SIGTERM."""

    def ended(*_: Any) -> NoReturn:
        raise SystemExit(143)

    signal.signal(signal.SIGTERM, ended)
    try:
        status = main()
    except KeyboardInterrupt:
        print("interrupted: the same command continues", file=sys.stderr)
        status = 130
    except (ValueError, FileNotFoundError, PermissionError, MemoryError) as error:
        print(
            f"error: {' '.join(str(error).split()) or 'out of memory: give a smaller --tile or --memory'}",
            file=sys.stderr,
        )
        status = 2
    except RuntimeError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        status = 1
    sys.stdout.flush()
    raise SystemExit(status)


@contextmanager
def progress(label: str) -> Iterator[Callable[[Any], None]]:
    """A function that shows a Progress: a bar on a terminal, else a line every 10 seconds."""
    if not sys.stderr.isatty():
        last = [time.monotonic()]

        def log(p: Any) -> None:
            if time.monotonic() - last[0] >= LOG_EVERY:
                last[0] = time.monotonic()
                print(f"{label}: {_text(p)}", file=sys.stderr, flush=True)

        yield log
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    with Progress(TextColumn(label), BarColumn(), TextColumn("{task.fields[text]}"), TimeRemainingColumn()) as bar:
        task = bar.add_task(label, total=None, text="")
        yield lambda p: bar.update(task, total=p.tiles, completed=p.done, text=_text(p))


def _text(p: Any) -> str:
    rate = p.pixels / 1e6 / max(p.seconds, 1e-9)
    failed = f", {p.failed} failed" if p.failed else ""
    left = (p.tiles - p.done) * p.seconds / max(1, p.done)
    return f"{p.done} of {p.tiles} tiles, {rate:.1f} MP/s, {left:.0f} s left{failed}"
