"""The table and its JSON."""

import json

import pytest

from engine.doctor_rows import ABSENT, FAIL, OK, WARN, Row, as_json, as_text, gib, training_fails

ROWS = [
    Row("Python", OK, "3.11.7"),
    Row("open files", WARN, "512, at most 512", "the loader holds files", "ulimit -n 65536"),
    Row("NVDEC", ABSENT, "no GPU"),
]


def test_the_table():
    assert as_text(ROWS, 100).splitlines() == [
        "ok      Python      3.11.7",
        "warn    open files  512, at most 512",
        "                    the loader holds files",
        "                    $ ulimit -n 65536",
        "absent  NVDEC       no GPU",
    ]


def test_long_texts_are_wrapped_and_commands_are_not():
    command = "pip install " + "package " * 20
    text = as_text([Row("x", FAIL, "word " * 30, "why " * 30, command)], 60)
    lines = text.splitlines()
    assert [line for line in lines if len(line) > 60] == [f"           $ {command}"]
    assert sum(line.count("word") for line in lines) == 30


def test_only_failing_rows_fail():
    assert not training_fails(ROWS)
    assert training_fails([*ROWS, Row("torch", FAIL, "x", "y", "z")])


def test_a_row_that_is_not_fine_says_why_and_what_mends_it():
    for state in (WARN, FAIL):
        with pytest.raises(AssertionError):
            Row("x", state, "found", why="", mend="command")
        with pytest.raises(AssertionError):
            Row("x", state, "found", why="why", mend="")


def test_json():
    tree = json.loads(json.dumps(as_json(ROWS, "a host", "cpu")))
    assert (tree["ok"], tree["machine"], tree["device"]) == (True, "a host", "cpu")
    assert tree["rows"][1] == {
        "name": "open files", "state": "warn", "found": "512, at most 512",
        "why": "the loader holds files", "mend": "ulimit -n 65536",
    }  # fmt: skip
    assert as_json([Row("x", FAIL, "f", "w", "m")], "", "cpu")["ok"] is False


def test_sizes():
    assert (gib(2**26), gib(1.5 * 2**30), gib(0)) == ("64 MiB", "1.5 GiB", "0 MiB")
