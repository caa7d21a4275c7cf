"""What commands write into pipes, terminals, full disks and closed streams; as real processes."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import termios
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from commands import ECHOLM, ON_FAKE_STORE, assert_message, environment, run
from echolm_on_fake_store import FIRST_ID

FULL = "/dev/full"


@pytest.fixture
def data_dir(tmp_path: Path) -> str:
    (tmp_path / "lock").touch()
    return str(tmp_path)


@pytest.fixture(scope="module")
def metrics_url() -> Iterator[str]:
    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'nv_inference_count{model="echolm"} 3\n')

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Page)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/metrics"
    server.shutdown()
    server.server_close()


def on_terminal(columns: int, *command: str, **variables: str | None) -> tuple[int, list[str]]:
    """Exit code and lines of a command whose standard output is a terminal."""
    controller, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    changed = environment(COLUMNS=None, LINES=None, **variables)
    with subprocess.Popen(command, stdout=terminal, stderr=subprocess.PIPE, env=changed) as process:
        os.close(terminal)
        written = b""
        try:
            while data := os.read(controller, 65_536):
                written += data
        except OSError:  # the other end is closed
            pass
        code = process.wait()
    os.close(controller)
    return code, written.decode().replace("\r\n", "\n").splitlines()


def test_a_list_in_a_pipe_is_whole(data_dir: str) -> None:
    done = run(*ON_FAKE_STORE, "3", "examples", "top", "--data-dir", data_dir)
    assert (done.returncode, done.stderr) == (0, "")
    title, *lines = done.stdout.splitlines()
    assert title.split() == ["id", "value", "uses", "ratings", "gain", "bytes", "request"]
    assert sorted(int(line.split()[0]) for line in lines) == [FIRST_ID + i for i in range(3)]
    for line in lines:
        assert re.search(r" 0\.50 +0 +0 +0\.000 +\d{3} +request \d: \S*\[31ma text of", line)
        assert line.endswith("and more and more") and line.count("and more") == 20
        assert "\x1b" not in line


@pytest.mark.parametrize("term", ["xterm", "dumb", None])
def test_at_80_columns_texts_give_way_and_figures_do_not(data_dir: str, term: str | None) -> None:
    command = (*ON_FAKE_STORE, "3", "examples", "top", "--data-dir", data_dir)
    code, (_, *lines) = on_terminal(80, *command, TERM=term)
    assert code == 0
    assert sorted(int(line.split()[0]) for line in lines) == [FIRST_ID + i for i in range(3)]
    for line in lines:
        assert len(line) <= 80
        assert re.search(r" 0\.50 +0 +0 +0\.000 +\d{3} +request \d.*…$", line)


def test_on_a_terminal_too_narrow_for_the_figures_they_are_whole(data_dir: str) -> None:
    command = (*ON_FAKE_STORE, "1", "examples", "top", "--data-dir", data_dir)
    code, (_, line) = on_terminal(20, *command)
    assert code == 0
    assert re.search(rf"^{FIRST_ID} +0\.50 +0 +0 +0\.000 +\d{{3}} +reques…$", line)


@pytest.mark.parametrize(
    "verb", ["export -", "top -n 3000", "top -n 3000 --json", f"show {FIRST_ID} " * 1]
)
def test_a_reader_that_leaves_is_no_error_to_speak_of(data_dir: str, verb: str) -> None:
    number = "1" if verb.startswith("show") else "3000"
    command = (*ON_FAKE_STORE, number, "examples", *verb.split(), "--data-dir", data_dir)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        if number == "1":
            process.stdout.close()  # before there is anything to read
        else:
            assert process.stdout.readline()
            process.stdout.close()
        error = process.stderr.read().decode()
        code = process.wait()
    assert code == 1
    assert "Traceback" not in error and "Exception" not in error and "echolm:" not in error


@pytest.mark.parametrize(
    "verb", ["stats", "top", f"show {FIRST_ID}", "export -", "check", "--help"]
)
def test_a_full_disk_is_a_message_and_a_failure(data_dir: str, verb: str) -> None:
    command = (*ON_FAKE_STORE, "3", "examples", "--data-dir", data_dir, *verb.split())
    with open(FULL, "w") as full:
        done = run(*command, stdout=full)
    assert done.returncode == 1
    assert_message(done.stderr, "standard output: expected to write", "No space left on device")


def test_a_full_disk_is_a_message_of_client_verbs_too(metrics_url: str) -> None:
    with open(FULL, "w") as full:
        done = run(*ECHOLM, "stats", "--metrics-url", metrics_url, stdout=full)
    assert done.returncode == 1
    assert_message(done.stderr, "standard output", "No space left on device")


def test_a_file_that_cannot_take_an_export_is_named(data_dir: str, tmp_path: Path) -> None:
    export = (*ON_FAKE_STORE, "300", "examples", "--data-dir", data_dir, "export")
    done = run(*export, FULL)
    assert done.returncode == 1
    assert_message(done.stderr, f"{FULL}: expected to write", "No space left", "not complete")
    done = run(*export, str(tmp_path / "none" / "file"))
    assert done.returncode == 2
    assert_message(done.stderr, "none/file: expected a file to write, got: No such file")
    done = run(*export[:-1], "import", str(tmp_path / "none"))
    assert done.returncode == 2
    assert_message(done.stderr, "none: expected a file to read, got: No such file")


def test_an_export_is_utf_8_wherever_it_goes(data_dir: str) -> None:
    export = (*ON_FAKE_STORE, "1", "examples", "--data-dir", data_dir, "export", "-")
    done = run(*export, env=environment(PYTHONIOENCODING="ascii"), encoding="utf-8")
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 2


def test_errors_that_cannot_be_written_are_dropped(data_dir: str) -> None:
    show = (*ON_FAKE_STORE, "1", "examples", "--data-dir", data_dir, "show", "1")
    with open(FULL, "w") as full:
        assert run(*show, stderr=full).returncode == 1
    assert run("sh", "-c", 'exec "$@" 2>&-', "sh", *show).returncode == 1


@pytest.mark.parametrize("closed", ["<&-", ">&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize("term", ["dumb", None])
def test_closed_streams_and_no_terminal_are_no_error(
    data_dir: str, closed: str, term: str | None
) -> None:
    stats = (*ON_FAKE_STORE, "1", "examples", "--data-dir", data_dir, "stats")
    done = run("sh", "-c", f'exec "$@" {closed}', "sh", *stats, env=environment(TERM=term))
    assert (done.returncode, done.stderr) == (0, "")
    assert ("stored    1 of" in done.stdout) == (">" not in closed)


@pytest.mark.parametrize("stdin", ["</dev/null", "<&-"])
def test_a_question_that_nobody_answers_is_an_error(data_dir: str, stdin: str) -> None:
    delete = (*ON_FAKE_STORE, "3", "examples", "--data-dir", data_dir, "delete", "--tenant", "t")
    done = run("sh", "-c", f'exec "$@" {stdin}', "sh", *delete)
    assert (done.returncode, done.stdout) == (2, "")
    assert_message(done.stderr, "delete: expected an answer", "--yes")


def test_a_question_answered_with_no_deletes_nothing(data_dir: str) -> None:
    delete = (*ON_FAKE_STORE, "3", "examples", "--data-dir", data_dir, "delete", "--tenant", "t")
    done = run(*delete, input="n\n")
    assert (done.returncode, done.stdout) == (1, "nothing was deleted\n")
    assert "delete 3 examples for good?" in done.stderr


def test_text_that_is_not_utf_8_is_an_error(tmp_path: Path, data_dir: str) -> None:
    file = tmp_path / "latin"
    file.write_bytes(b"caf\xe9\n")
    ask = (*ECHOLM, "ask", "-", "--url", "127.0.0.1:1")
    import_ = (*ON_FAKE_STORE, "0", "examples", "--data-dir", data_dir, "import", "-")
    for command, code, message in ((ask, 2, "can't decode byte 0xe9"), (import_, 1, "not UTF-8")):
        with file.open("rb") as stdin:
            done = run(*command, stdin=stdin, env=environment(PYTHONUTF8="1"))
        assert done.returncode == code
        assert message in done.stderr
        assert "Traceback" not in done.stderr
