"""The ledger: what was added stays, whatever ends the process, and nobody else writes it meanwhile."""

from __future__ import annotations

import json
import random
import resource
import signal
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.stitching.ledger import Ledger, LedgerError, Lock, Record

RECORDS: list[Record] = [(52310, 0x9A3B01FE), None, (1, 0)]


def text(folder: Path) -> bytes:
    return (folder / "ledger.txt").read_bytes()


def test_what_is_added_is_there_again(tmp_path: Path) -> None:
    with Ledger.open(tmp_path, "abc", 5) as ledger:
        assert (ledger.count, ledger.done(3)) == (0, False)
        ledger.add(3, RECORDS)
        ledger.add(0, [None])
        assert (ledger.count, ledger.done(3)) == (2, True)
    with Ledger.open(tmp_path, "abc", 5) as ledger:
        assert list(ledger) == [(3, RECORDS), (0, [None])]
        assert [unit for unit in range(5) if ledger.done(unit)] == [0, 3]
        assert ledger.records(3) == RECORDS
    with Ledger.read(tmp_path) as ledger:
        assert (ledger.fingerprint, ledger.units, ledger.count) == ("abc", 5, 2)


def test_it_can_be_read_by_eye(tmp_path: Path) -> None:
    with Ledger.open(tmp_path, "abc", 20) as ledger:
        ledger.add(17, RECORDS)
        ledger.forget([17])
    assert text(tmp_path).splitlines() == [
        b'{"ledger": 2, "fingerprint": "abc", "units": 20}',
        b"17 52310:9a3b01fe - 1:00000000",
        b"17 !",
    ]


def test_the_last_word_on_a_unit_holds(tmp_path: Path) -> None:
    with Ledger.open(tmp_path, "abc", 5) as ledger:
        for unit in (1, 2, 3):
            ledger.add(unit, [(unit, unit)])
        ledger.forget([1, 3])
        ledger.add(3, [(30, 30)])
        ledger.add(2, [(20, 20)])
        assert (ledger.count, list(ledger)) == (2, [(3, [(30, 30)]), (2, [(20, 20)])])
    with Ledger.open(tmp_path, "abc", 5) as ledger:
        assert (ledger.count, list(ledger)) == (2, [(3, [(30, 30)]), (2, [(20, 20)])])


def test_any_cut_loses_at_most_the_line_that_it_tears(tmp_path: Path) -> None:
    """Whatever part of the file reached the disk, the rest can be added and all is well."""
    with Ledger.open(tmp_path, "abc", 4) as ledger:
        for unit in range(4):
            ledger.add(unit, [*RECORDS, (unit, unit)])
    whole = text(tmp_path)
    for cut in range(len(whole) + 1):
        (tmp_path / "ledger.txt").write_bytes(whole[:cut])
        lines = max(0, whole[:cut].count(b"\n") - 1)
        with Ledger.open(tmp_path, "abc", 4) as ledger:
            assert [unit for unit, _ in ledger] == list(range(lines))
            for unit in range(lines, 4):
                ledger.add(unit, [*RECORDS, (unit, unit)])
        assert text(tmp_path) == whole


def test_nothing_of_a_torn_line_stays_behind_a_shorter_one(tmp_path: Path) -> None:
    with Ledger.open(tmp_path, "abc", 4):
        pass
    whole = text(tmp_path)
    (tmp_path / "ledger.txt").write_bytes(whole + b"3 1000:00000001 2 -")
    with Ledger.open(tmp_path, "abc", 4) as ledger:
        ledger.add(0, [None])
    assert text(tmp_path) == whole + b"0 -\n"


@settings(deadline=None, max_examples=60)
@given(st.binary(min_size=1, max_size=60), st.integers(0, 200))
def test_rubbish_in_it_never_makes_a_unit_done(
    tmp_path_factory: pytest.TempPathFactory, rubbish: bytes, at: int
) -> None:
    """As after a power cut. A unit may be done again, but none counts as done that was not added."""
    folder = tmp_path_factory.mktemp("ledger")
    with Ledger.open(folder, "abc", 10) as ledger:
        start = len(text(folder))
        for unit in (1, 4, 7):
            ledger.add(unit, RECORDS)
    content = text(folder)
    at = min(start + at, len(content))
    rubbish = bytes(b for b in rubbish if b not in b"0123456789 ")
    (folder / "ledger.txt").write_bytes(content[:at] + rubbish + content[at:])
    with Ledger.open(folder, "abc", 10) as ledger:
        assert {unit for unit, _ in ledger} <= {1, 4, 7}
        ledger.add(9, RECORDS)
    with Ledger.open(folder, "abc", 10) as ledger:
        assert ledger.records(9) == RECORDS


@pytest.mark.parametrize("line", ["5 12:0000000", "-1 -", "99 -", "3 1:2:3", "3 x:1", "3 12", "3 12:0", "3", "x -", ""])
def test_lines_that_make_no_sense_are_passed_over(line: str, tmp_path: Path) -> None:
    with Ledger.open(tmp_path, "abc", 5) as ledger:
        ledger.add(2, RECORDS)
    with open(tmp_path / "ledger.txt", "a") as file:
        file.write(line + "\n4 -\n")
    with Ledger.open(tmp_path, "abc", 5) as ledger:
        assert list(ledger) == [(2, RECORDS), (4, [None])]


@pytest.mark.parametrize(("fingerprint", "units"), [("other", 5), ("abc", 6)])
def test_another_run_is_refused_and_changes_nothing(fingerprint: str, units: int, tmp_path: Path) -> None:
    with Ledger.open(tmp_path, "abc", 5) as ledger:
        ledger.add(2, RECORDS)
    before = text(tmp_path)
    with pytest.raises(LedgerError, match="--overwrite"):
        Ledger.open(tmp_path, fingerprint, units)
    assert text(tmp_path) == before
    Ledger.open(tmp_path, "abc", 5).close()


def test_another_file_in_its_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "ledger.txt").write_text("my shopping list\nmilk\n")
    with pytest.raises(LedgerError, match=r"ledger\.txt is not a ledger"):
        Ledger.open(tmp_path, "abc", 5)
    assert text(tmp_path) == b"my shopping list\nmilk\n"
    with pytest.raises(LedgerError, match="no ledger"):
        Ledger.read(tmp_path / "elsewhere")


def test_one_of_an_older_version_whose_checksums_are_others_is_refused(tmp_path: Path) -> None:
    (tmp_path / "ledger.txt").write_text('{"ledger": 1, "fingerprint": "abc", "units": 5}\n3 52310:9a3b01fe\n')
    for look in (lambda: Ledger.open(tmp_path, "abc", 5), lambda: Ledger.read(tmp_path)):
        with pytest.raises(LedgerError, match="not a ledger of this version: use --overwrite"):
            look()


OPENER = """
import sys
from pipeline.stitching.ledger import Ledger
try:
    ledger = Ledger.open(sys.argv[1], "abc", 1000000)
except ValueError as error:
    print(f"refused: {error}", flush=True)
    sys.exit()
print("open", flush=True)
unit = ledger.count
while sys.argv[2] == "add":
    ledger.add(unit, [(unit, unit), None])
    print(unit, flush=True)
    unit += 1
sys.stdin.read()
"""


def opener(folder: Path, what: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", OPENER, str(folder), what]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_a_second_process_is_refused_until_the_first_is_killed(tmp_path: Path) -> None:
    folder = tmp_path / "big.zarr" / "ledger"
    folder.mkdir(parents=True)
    with opener(folder, "hold") as first:
        assert first.stdout is not None and first.stdout.readline() == "open\n"
        with pytest.raises(LedgerError, match=rf"big\.zarr is being written by another run \(process {first.pid}\)"):
            Ledger.open(folder, "abc", 1000000)
        with opener(folder, "hold") as second:
            assert second.communicate()[0].startswith("refused: ")
        first.send_signal(signal.SIGKILL)
        first.wait()
        Ledger.open(folder, "abc", 1000000).close()


def test_one_process_cannot_open_it_twice(tmp_path: Path) -> None:
    with Ledger.open(tmp_path, "abc", 5), pytest.raises(LedgerError, match="another run"):
        Ledger.open(tmp_path, "abc", 5)
    Ledger.open(tmp_path, "abc", 5).close()


def test_a_lock_that_was_taken_before_passes_to_the_ledger(tmp_path: Path) -> None:
    lock = Lock(tmp_path)
    with Ledger.open(tmp_path, "abc", 5, lock=lock), pytest.raises(LedgerError, match="another run"):
        Lock(tmp_path)
    lock = Lock(tmp_path)
    with pytest.raises(LedgerError, match="differs"):
        Ledger.open(tmp_path, "other", 5, lock=lock)
    Lock(tmp_path).release()


def test_reading_needs_no_lock_and_mends_nothing(tmp_path: Path) -> None:
    with Ledger.open(tmp_path, "abc", 5) as ledger:
        ledger.add(1, RECORDS)
        with open(tmp_path / "ledger.txt", "a") as file:
            file.write("2 12:00")
        with Ledger.read(tmp_path) as reader:
            assert [unit for unit, _ in reader] == [1]
        assert text(tmp_path).endswith(b"2 12:00")


def test_a_kill_loses_nothing_that_was_added(tmp_path: Path) -> None:
    """SIGKILL at a moment of chance, five times over the same ledger."""
    chance = random.Random(0)
    done = 0
    for _ in range(5):
        with opener(tmp_path, "add") as process:
            assert process.stdout is not None and process.stdout.readline() == "open\n"
            time.sleep(chance.uniform(0.005, 0.05))
            process.send_signal(signal.SIGKILL)
            said = [int(line) for line in process.stdout.read().splitlines(keepends=True) if line.endswith("\n")]
        with Ledger.open(tmp_path, "abc", 1000000) as ledger:
            assert ledger.count >= max(said, default=-1) + 1
            assert list(ledger) == [(unit, [(unit, unit), None]) for unit in range(ledger.count)]
            assert ledger.count > done, "every process added something"
            done = ledger.count


def test_a_full_disk_leaves_it_as_it_was(tmp_path: Path) -> None:
    """A limit on the size of files stands in for the disk; it takes a part of the line."""
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    with Ledger.open(tmp_path, "abc", 5) as ledger:
        ledger.add(1, RECORDS)
        before = text(tmp_path)
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 10, limit[1]))
        try:
            with pytest.raises(LedgerError, match=r"cannot write .*ledger\.txt"):
                ledger.add(2, RECORDS)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limit)
            signal.signal(signal.SIGXFSZ, ignored)
        assert (text(tmp_path), ledger.count, ledger.done(2)) == (before, 1, False)
        ledger.add(2, RECORDS)
    with Ledger.open(tmp_path, "abc", 5) as ledger:
        assert [unit for unit, _ in ledger] == [1, 2]


def test_a_folder_that_cannot_be_made_is_named() -> None:
    with pytest.raises(LedgerError, match="cannot write /proc/ledger"):
        Ledger.open("/proc/ledger", "abc", 5)


def test_a_unit_of_many_shards(tmp_path: Path) -> None:
    """21 classes in 64 shards each: a line longer than any buffer."""
    records: list[Record] = [(n, n * 7919 % 2**32) if n % 5 else None for n in range(21 * 64)]
    with Ledger.open(tmp_path, "abc", 3) as ledger:
        for unit in range(3):
            ledger.add(unit, records[unit:])
    with Ledger.open(tmp_path, "abc", 3) as ledger:
        assert ledger.records(1) == records[1:]
        assert list(ledger) == [(unit, records[unit:]) for unit in range(3)]


def test_a_million_units_take_little_memory(tmp_path: Path) -> None:
    units = 1_000_000
    header = json.dumps({"ledger": 2, "fingerprint": "abc", "units": units})
    with open(tmp_path / "ledger.txt", "w") as file:
        file.write(header + "\n")
        file.writelines(f"{unit} {unit + 1000}:{unit:08x}\n" for unit in range(0, units, 50))
    tracemalloc.start()
    try:
        with Ledger.open(tmp_path, "abc", units) as ledger:
            assert (ledger.count, ledger.done(999_950), ledger.done(999_949)) == (20_000, True, False)
            assert ledger.records(999_950) == [(1_000_950, 999_950)]
            assert sum(1 for _ in ledger) == 20_000
            assert tracemalloc.get_traced_memory()[1] < 15e6
    finally:
        tracemalloc.stop()
