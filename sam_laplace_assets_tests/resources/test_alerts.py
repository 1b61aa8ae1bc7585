import json
import os
import shlex
import socket
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from sam_laplace_assets.resources import alerts
from sam_laplace_assets.resources.alerts import Alert, AlertNotDelivered, Command, Webhook, hooks_of
from sam_laplace_assets.settings import AlertSettings

ALERT = Alert("run_failed", "train_and_fit of train-müde failed: 深い海 ☂", {"run_id": "1a2b", "attempts": 3})
SAID = {"event": "run_failed", "text": ALERT.text, "facts": {"run_id": "1a2b", "attempts": 3}}
SECRET = "/services/T0/B1/s3cret"


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def script(tmp_path):
    """Writes a Python program, and gives the command that starts it."""

    def write(body):
        path = tmp_path / "tell the lab.py"
        path.write_text(f"#!{sys.executable}\nimport os, signal, subprocess, sys, time\n{body}\n", encoding="utf-8")
        path.chmod(0o755)
        return shlex.quote(str(path))

    return write


class Answers(BaseHTTPRequestHandler):
    """Notes each request and answers as its server says."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.heard.append((self.path, dict(self.headers), body))
        self.server.answer(self)

    def do_GET(self):
        self.server.heard.append((self.path, dict(self.headers), b""))
        self.reply(200)

    def reply(self, status, **headers):
        self.send_response(status, "words of the server about " + self.path)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    server.heard, server.answer = [], lambda request: request.reply(200)
    server.place = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def refusal(hook, alert=ALERT):
    """Why a hook did not take an alert."""
    with pytest.raises(AlertNotDelivered) as caught:
        hook.send(alert)
    assert caught.value.__cause__ is caught.value.__context__ is None
    return str(caught.value)


def test_a_command_gets_one_json_object_on_its_standard_input(script, tmp_path):
    heard = tmp_path / "heard"
    command = script("open(sys.argv[1], 'wb').write(sys.stdin.buffer.read())")
    Command(f"{command} {heard}").send(ALERT)
    assert json.loads(heard.read_bytes()) == SAID
    assert "深い海" in heard.read_text(encoding="utf-8")


def test_no_shell_reads_the_command(script, tmp_path):
    heard = tmp_path / "heard"
    command = script("open(sys.argv[1], 'w').write(repr(sys.argv[2:]))")
    Command(f"{command} {heard} '$HOME' '; false' '*'").send(ALERT)
    assert heard.read_text() == "['$HOME', '; false', '*']"


def test_a_command_that_fails_says_its_status_and_the_last_line_of_its_standard_error(script):
    command = script(
        "print('so far so good')\nprint('one', 'mail server is öff.', sep='\\n\\n', file=sys.stderr)\nsys.exit(3)"
    )
    assert refusal(Command(command)) == (
        "alerts.command (tell the lab.py) ended with exit status 3: mail server is öff."
    )


def test_a_command_that_fails_silently_says_its_status(script):
    assert refusal(Command(script("sys.exit(1)"))).endswith(") ended with exit status 1.")


def test_a_command_that_is_killed_says_the_signal(script):
    assert refusal(Command(script("os.kill(os.getpid(), 9)"))).endswith(") was killed by signal 9.")


def test_a_command_that_hangs_is_killed_with_what_it_started(script, tmp_path, monkeypatch):
    monkeypatch.setattr(alerts, "COMMAND_SECONDS", 1.0)
    started = tmp_path / "started"
    command = script(
        "child = subprocess.Popen(['sleep', '100'])\nopen(sys.argv[1], 'w').write(str(child.pid))\n"
        "print('asking the server', file=sys.stderr, flush=True)\nchild.wait()"
    )
    before = time.monotonic()
    said = refusal(Command(f"{command} {started}"))
    assert said.endswith("was not done within 1 s and was killed: asking the server.")
    assert time.monotonic() - before < 10
    assert is_gone(int(started.read_text()))


def is_gone(process):
    """Whether a process has ended, with some patience."""
    status = Path(f"/proc/{process}/stat")
    for _ in range(100):
        if not status.exists() or status.read_text().rpartition(")")[2].split()[0] == "Z":
            return True
        time.sleep(0.05)
    return False


def test_what_a_command_leaves_running_is_not_waited_for(script, tmp_path, monkeypatch):
    monkeypatch.setattr(alerts, "COMMAND_SECONDS", 5.0)
    left = tmp_path / "left"
    command = script("open(sys.argv[1], 'w').write(str(subprocess.Popen(['sleep', '60']).pid))")
    before = time.monotonic()
    Command(f"{command} {left}").send(ALERT)
    assert time.monotonic() - before < 5
    os.kill(int(left.read_text()), 9)


def test_a_command_need_not_read_what_it_is_told(script):
    Command(script("sys.stdin.close()")).send(Alert("run_failed", "x" * 1_000_000))


def test_a_command_that_is_not_there_says_so_without_its_arguments(tmp_path):
    said = refusal(Command(f"{tmp_path}/nobody --token s3cret"))
    assert said == "alerts.command (nobody) could not be started: No such file or directory."


def test_a_file_that_is_no_program_says_so(tmp_path):
    (tmp_path / "notes").write_text("call the lab")
    assert refusal(Command(f"{tmp_path}/notes")) == "alerts.command (notes) could not be started: Permission denied."


def test_a_webhook_gets_a_json_post_whose_text_is_on_top(server):
    Webhook(server.place + SECRET).send(ALERT)
    [(path, headers, body)] = server.heard
    assert path == SECRET
    assert headers["Content-Type"] == "application/json"
    assert json.loads(body) == SAID
    assert json.loads(body)["text"] == ALERT.text


@pytest.mark.parametrize("status", [201, 202, 204])
def test_every_2xx_is_a_delivery(server, status):
    server.answer = lambda request: request.reply(status)
    Webhook(server.place).send(ALERT)


@pytest.mark.parametrize(
    ("status", "words"),
    [(400, "Bad Request"), (404, "Not Found"), (500, "Internal Server Error"), (503, "Service Unavailable"), (599, "")],
)
def test_another_status_is_told_without_the_path(server, status, words):
    server.answer = lambda request: request.reply(status)
    said = refusal(Webhook(server.place + SECRET))
    assert said == f"alerts.webhook ({server.place}) answered with HTTP {status} {words}".rstrip() + "."
    assert len(server.heard) == 1


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize(
    ("location", "place"),
    [
        ("https://elsewhere.example:8443/s3cret", "https://elsewhere.example:8443"),
        ("file:///etc/s3cret", "file://"),
        ("ftp://elsewhere.example/s3cret", "ftp://elsewhere.example"),
        ("/login?from=s3cret", None),
    ],
)
def test_a_redirect_is_told_and_not_followed(server, status, location, place):
    server.answer = lambda request: request.reply(status, Location=location)
    said = refusal(Webhook(server.place + SECRET))
    assert f"answered with HTTP {status} " in said
    assert said.endswith(f", which points to {place or server.place}; a redirect is not followed.")
    assert "s3cret" not in said
    assert len(server.heard) == 1


def test_a_server_that_never_answers_is_left_after_the_limit(monkeypatch):
    monkeypatch.setattr(alerts, "WEBHOOK_SECONDS", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        place = f"http://127.0.0.1:{silent.getsockname()[1]}"
        before = time.monotonic()
        assert refusal(Webhook(place + SECRET)) == f"alerts.webhook ({place}) did not answer within 0.3 s."
        assert time.monotonic() - before < 5


def test_a_server_that_drips_is_left_after_the_limit(server, monkeypatch):
    monkeypatch.setattr(alerts, "WEBHOOK_SECONDS", 0.5)

    def drip(request):
        for _ in range(30):
            request.wfile.write(b"H")
            request.wfile.flush()
            time.sleep(0.1)

    server.answer = drip
    before = time.monotonic()
    assert refusal(Webhook(server.place)).endswith("did not answer within 0.5 s.")
    assert time.monotonic() - before < 2


def test_a_server_that_hangs_up_or_is_not_there_is_told(server):
    server.answer = lambda request: None
    assert refusal(Webhook(server.place + SECRET)) == (
        f"alerts.webhook ({server.place}) could not be reached: Remote end closed connection without response."
    )
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    assert refusal(Webhook(f"http://127.0.0.1:{port}{SECRET}")) == (
        f"alerts.webhook (http://127.0.0.1:{port}) could not be reached: Connection refused."
    )


@pytest.mark.parametrize("address", [
    "https://user:s3cret@hooks.example/x", "http://127.0.0.1:1/a s3cret\n", "http://[s3cret", "http://h:s3cret/",
    "https://", "http://127.0.0.1:1/s3crét", "file:///etc/s3cret", "ftp://127.0.0.1:1/s3cret",
])  # fmt: skip
def test_an_address_that_nothing_can_be_posted_to_keeps_its_secret(address):
    said = refusal(Webhook(address))
    assert said.startswith("alerts.webhook (")
    assert "s3cr" not in said


def test_the_environments_proxy_is_used(server, monkeypatch):
    monkeypatch.setenv("http_proxy", server.place)
    Webhook("http://hooks.example/lab").send(ALERT)
    [(path, headers, _)] = server.heard
    assert path == "http://hooks.example/lab"
    assert headers["Host"] == "hooks.example"
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    Webhook(server.place).send(ALERT)


def test_every_alert_can_be_written(server):
    Webhook(server.place).send(Alert("champion_changed", "half \udc80 a letter", {"nll": float("nan")}))
    [(_, _, body)] = server.heard
    assert json.loads(body)["text"] == "half ? a letter"
    assert json.loads(body)["facts"] == {"nll": "nan"}


def test_the_settings_name_the_hooks_and_no_hook_shows_its_address():
    both = AlertSettings(command="notify-lab s3cret", webhook="https://hooks.example" + SECRET)
    assert list(hooks_of(both)) == ["command", "webhook"]
    assert hooks_of(AlertSettings()) == {}
    assert "s3cret" not in repr(hooks_of(both))
