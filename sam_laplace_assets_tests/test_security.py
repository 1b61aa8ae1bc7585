"""Nothing that a file, a key or a page says runs code, leaves its folder, or tells a secret."""

import ast
import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

import dagster as dg
import psutil
import pytest
import yaml
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

import sam_laplace_assets
from sam_laplace_assets import settings as settings_module
from sam_laplace_assets.assets.graph import ASSETS
from sam_laplace_assets.cli import cli
from sam_laplace_assets.commands import dagster_dev, webserver
from sam_laplace_assets.commands.dev import Reach
from sam_laplace_assets.commands.webserver import own_pages_only
from sam_laplace_assets.definitions import defs
from sam_laplace_assets.domain.manifest import LONGEST_KEY, safe_id
from sam_laplace_assets.io_managers import IO_MANAGERS
from sam_laplace_assets.partitions import splits, training_splits
from sam_laplace_assets.redaction import HIDDEN, redact, without_user
from sam_laplace_assets.resources.alerts import AlertNotDelivered, Command, Webhook, hooks_of
from sam_laplace_assets.resources.tracking import Store
from sam_laplace_assets.settings import SETTINGS_VARIABLE, SettingsError, load_settings
from sam_laplace_assets.storage import files
from sam_laplace_assets.storage.inside import LeadsOut, below, plain
from sam_laplace_assets.storage.project import SplitUnknown, named_splits, roots_of
from sam_laplace_assets_tests.browser import _free_port, _wait_for
from sam_laplace_assets_tests.faults.figures import Tally, keep
from sam_laplace_assets_tests.small_project import JOBS, add_sample, failure, hashes

PACKAGE = Path(sam_laplace_assets.__file__).parent
TREES = {path.relative_to(PACKAGE).as_posix(): ast.parse(path.read_text()) for path in PACKAGE.rglob("*.py")}
UNPICKLERS = {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
KNOWS_ITS_ERRORS = {"resources/checkpoints.py", "storage/weights.py"}


def calls(*names):
    """Calls of functions by their dotted name or its last parts, as (module, node, dotted name)."""
    for module, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                dotted = ast.unparse(node.func)
                if any(dotted == name or dotted.endswith(f".{name}") for name in names):
                    yield module, node, dotted


def given_as(node, name):
    """What a call passes by this keyword, as source; None if it passes nothing."""
    return next((ast.unparse(one.value) for one in node.keywords if one.arg == name), None)


def test_no_module_imports_what_unpickles_but_for_the_names_of_its_errors():
    for module, tree in TREES.items():
        for node in ast.walk(tree):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            found = {name.partition(".")[0] for name in names} & UNPICKLERS
            assert not found or (module in KNOWS_ITS_ERRORS and found == {"pickle"}), module
    for module in KNOWS_ITS_ERRORS:
        used = {node.attr for node in ast.walk(TREES[module])
                if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "pickle"}  # fmt: skip
        assert used == {"UnpicklingError"}, module


def test_no_module_evaluates_text_or_asks_a_shell():
    found = list(calls("eval", "exec", "compile", "__import__", "system", "popen", "getoutput", "spawn"))
    harmless = {name for _, node, name in found if name.endswith(".eval") and not node.args}  # of a model: its mode
    harmless |= {"re.compile", "torch.compile"}
    assert [(module, name) for module, _, name in found if name not in harmless] == []
    assert [module for module, tree in TREES.items() for node in ast.walk(tree)
            if isinstance(node, ast.keyword) and node.arg == "shell"] == []  # fmt: skip


def test_modules_are_imported_by_names_that_stand_in_the_code():
    for module, node, name in calls("import_module", "run_module", "run_path"):
        assert isinstance(node.args[0], ast.Constant), (module, name)


def test_weights_and_arrays_are_never_unpickled():
    loads = list(calls("torch.load"))
    assert len(loads) >= 3
    assert all(given_as(node, "weights_only") == "True" for _, node, _ in loads), [module for module, *_ in loads]
    arrays = [*calls("np.load", "read_array", "numpy.load")]
    arrays = [one for one in arrays if one[0] != "assets/panels.py" and one[2] != "read_array"]
    assert arrays
    assert all(given_as(node, "allow_pickle") == "False" for _, node, _ in arrays), arrays
    assert [*calls("read_pickle", "to_pickle", "load_model", "pyfunc", "log_model")] == []


def test_yaml_is_read_without_tags_that_call():
    assert settings_module.FAST_LOADER in (yaml.SafeLoader, getattr(yaml, "CSafeLoader", None))
    for module, node, _ in calls("yaml.load"):
        assert ast.unparse(node.args[1]) == "FAST_LOADER", module
    assert [*calls("yaml.full_load", "yaml.unsafe_load", "yaml.load_all", "yaml.full_load_all")] == []


def test_pictures_are_opened_only_as_what_they_may_be():
    opened = [(module, node) for module, node, _ in calls("Image.open") if module != "assets/pictures.py"]
    assert opened
    assert all(given_as(node, "formats") for _, node in opened), opened


def test_no_name_of_a_temporary_file_can_be_guessed():
    assert [
        module
        for module, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith("/tmp")
    ] == []
    assert [*calls("mktemp", "gettempdir")] == []


def test_no_output_of_any_job_is_pickled_by_dagsters_default():
    for job in defs.resolve_all_job_defs():
        for node in job.all_node_defs:
            for output in getattr(node, "output_defs", ()):
                pickled = output.io_manager_key not in IO_MANAGERS and not output.dagster_type.is_nothing
                assert not pickled or node.name.startswith("checks_of_"), (job.name, node.name)
    assert {key for asset in ASSETS for key in asset.get_io_manager_key_for_asset_key(asset.key).split()} <= {
        *IO_MANAGERS
    }


def test_a_made_project_left_no_pickle_anywhere(made_project):
    """Checks have outputs of Dagster's default kind, which it does not store."""
    kept = [path for path in made_project.folder.rglob("*") if path.is_file()]
    assert len(kept) > 100
    for path in kept:
        with path.open("rb") as file:
            assert file.read(2) not in (b"\x80\x04", b"\x80\x05", b"\x80\x03"), path


NAMES = st.text(st.characters(codec="utf-8"), max_size=40) | st.sampled_from(
    ["../x", "..", ".", "", "/etc/passwd", "a/../../b", "a/..", "\0", "a\0b", "x" * 300, "..\\..\\x", "%2e%2e/x", "~/x"]
)


@given(NAMES)
def test_a_name_either_stays_below_its_folder_or_is_refused(name):
    folder = Path("/project/reports")
    try:
        path = below(folder, name)
    except LeadsOut:
        assert not name or name.startswith("/") or "\0" in name or ".." in name
    else:
        assert Path(os.path.normpath(path)).is_relative_to(folder)
        assert "\0" not in str(path)


@given(NAMES)
def test_a_plain_name_is_one_file_in_its_folder_or_is_refused(name):
    folder = Path("/project/reports")
    with contextlib.suppress(LeadsOut):
        assert (folder / plain(name)).parent == folder
        assert len(os.fsencode(plain(name))) <= 255


def is_part(name):
    return name not in ("", ".", "..") and "/" not in name and "\0" not in name


@given(st.lists(NAMES.filter(is_part), min_size=2, max_size=4))
def test_the_safe_id_of_any_sample_is_a_plain_name_or_too_long(parts):
    made = safe_id("/".join(parts))
    if len(made.encode()) <= 255:
        assert plain(made) == made


HOSTILE_KEYS = [
    "../x", "test-../../x", "/etc", "test-a/b", "test-\x00", "test-" + "a" * 300, "test-" + "a" * (LONGEST_KEY - 4),
    "test-\u2024\u2024", "test-a ", " test-a", "test-a\n", "test-%2e%2e", "..", ".", "", "test-a\\b", "~",
    "test-\uff41", "$HOME", "test-$(touch x)",
]  # fmt: skip


@pytest.fixture(scope="module")
def keys():
    tally = Tally()
    yield tally
    tally.keep("hostile partition keys and splits", group="security", gets="refused in words; nothing is written")


@pytest.fixture(scope="module")
def pages():
    tally = Tally()
    yield tally
    tally.keep("requests that pages and names of other sites send to the UI", group="security",
               gets="refused; own pages, programs and links are answered")  # fmt: skip


@pytest.fixture(scope="module")
def refusing(tmp_path_factory, made_project):
    """A copy of the made project that nobody may add anything to."""
    return made_project.copy(tmp_path_factory.mktemp("refusing"))


@pytest.mark.parametrize("key", HOSTILE_KEYS)
def test_a_hostile_key_is_refused_by_settings_and_command_line(refusing, monkeypatch, key, keys):
    project = refusing.use(monkeypatch)
    before = everything(project.folder)
    with keys.one(), pytest.raises(ValueError, match="Split"):
        roots_of(project.settings.data, key)
    for command in ("run", "status", "plan"):
        with keys.one():
            result = CliRunner().invoke(cli, [command, "--split", key])
            assert result.exit_code != 0, command
            assert "Split" in f"{result.output}{result.exception}"
    assert everything(project.folder) == before


def everything(folder):
    """Files below a folder, but for Dagster's own."""
    return {path for path in folder.rglob("*") if "dagster_home" not in path.parts}


PARTITIONED = [asset.key.to_user_string() for asset in ASSETS if asset.partitions_def in (splits, training_splits)]


@pytest.mark.parametrize("asset", PARTITIONED)
def test_every_partitioned_asset_refuses_a_hostile_key_that_was_registered(refusing, monkeypatch, asset, keys):
    """The GraphQL API takes any key as a partition."""
    project = refusing.use(monkeypatch)
    before = everything(project.folder)
    for key in ("test-../../x", "../x"):
        job = "sweep_posteriors" if asset == "posterior_sweep" else None
        with keys.one():
            result = materialise(project, asset, key, job)
            assert not result.success
            assert "Split" in failure(result)
    assert everything(project.folder) == before
    assert not (project.folder.parent / "x").exists()


def materialise(project, asset, key, job):
    if job is None:
        return project.materialise(asset, split=key)
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setitem(JOBS, asset, job)
        return project.materialise(asset, split=key)


@pytest.fixture
def with_splits(new_project):
    (new_project.folder / "splits").mkdir()
    return new_project


def test_hostile_folders_below_the_splits_root_become_no_partition(with_splits):
    root = with_splits.folder / "splits"
    for name in ("test-a b", "test-%2e%2e", "test-․․", "test-a\\b", "test-" + "a" * 200, "test-a\n", "..x"):
        (root / name).mkdir()
    assert named_splits(with_splits.settings.data) == []


def test_a_split_that_is_a_link_out_of_its_root_is_refused_unless_allowed(with_splits, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    add_sample(elsewhere, "boxes/00", 3)
    root = with_splits.folder / "splits"
    (root / "test-out").symlink_to(elsewhere)
    (root / "test-real").mkdir()
    (root / "test-in").symlink_to(root / "test-real")
    data = with_splits.settings.data
    assert named_splits(data) == ["test-in", "test-real"]
    with pytest.raises(
        SplitUnknown, match=r"'test-out' is a link out of .*data\.splits\.test-out.*allow_links_out: true"
    ):
        roots_of(data, "test-out")
    with_splits.change(data={"allow_links_out": True})
    allowed = with_splits.settings.data
    assert named_splits(allowed) == ["test-in", "test-out", "test-real"]
    assert roots_of(allowed, "test-out").images_root == root / "test-out" / "images"


def test_a_prediction_stays_in_its_folder_whatever_its_image_is_called(read_only, tmp_path):
    """Names that an image may have: those with an ending that is taken off, too."""
    names = ["..png", "...png", "-rf.png", "a\nb.png", "$(touch x).png", "é\u202e.png", "%2e%2e.png", "a b;c.png"]
    source = next((read_only.folder / "images").rglob("*.png"))
    given = tmp_path / "given"
    given.mkdir()
    for name in names:
        shutil.copyfile(source, given / name)
    out = tmp_path / "out" / "predictions"
    images = [str(given / name) for name in names]
    result = CliRunner().invoke(cli, ["predict", "--points", "20,20,1", "--out", str(out), "--", *images])
    assert result.exit_code == 0, result.output
    assert {path.parent for path in (tmp_path / "out").rglob("*") if path.is_file()} == {out}
    assert len(list(out.glob("*_mask.png"))) == len(names)


SECRET = "s3cr3t-t0k3n"
ADDRESSES = [
    f"https://user:{SECRET}@mlflow.example.org/a", f"postgresql+psycopg2://u:{SECRET}@db:5432/x",
    f"http://{SECRET}@host",
    f"https://host/a?token={SECRET}&b=1", f"https://host/?x=1&api_key={SECRET}", f"http://u:pa/ss@{SECRET}@host/x",
    f"Authorization: Bearer {SECRET}", f"{{'password': '{SECRET}'}}", f"MLFLOW_TRACKING_TOKEN={SECRET}",
]  # fmt: skip


@pytest.mark.parametrize("text", ADDRESSES)
def test_what_looks_like_a_secret_is_taken_out_of_a_text(text):
    told = redact(f"could not reach {text}: timed out")
    assert SECRET not in told
    assert HIDDEN in told
    assert told.endswith(": timed out") or "Bearer" in text


@given(st.text(st.characters(exclude_characters="@=:", codec="utf-8")))
def test_a_text_without_secrets_stays_as_it_is(text):
    assert redact(text) == text or "bearer" in text.lower()


def test_values_of_secret_variables_are_known_wherever_they_stand(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "correct horse battery")
    assert redact("tried 'correct horse battery' twice") == f"tried '{HIDDEN}' twice"
    monkeypatch.setenv("SOME_TOKEN", "on")
    assert redact("turned on") == "turned on"


def test_an_address_for_the_browser_has_no_user(project):
    project.change(mlflow={"tracking_uri": f"https://me:{SECRET}@host:8/x/"})
    assert Store.of(project.settings).ui == without_user(f"https://me:{SECRET}@host:8/x") == "https://host:8/x"


@pytest.mark.parametrize("wrong", [
    f"alerts: {{webhook: 'ftp://hooks/{SECRET}'}}", f"alerts: 'https://hooks/{SECRET}'",
    f"alerts: {{command: [curl, {SECRET}]}}", f"mlflow: {{tracking_uri: [{SECRET}]}}",
    f"mlflow: {{tracking_uri: x, url: {SECRET}}}", f"mlflow: 'http://u:{SECRET}@host'", f"mlflow: [{SECRET}",
    f"alerts:\n  webhook: https://hooks/{SECRET}: x", f"alerts: {{webhook: 'https://hooks/{SECRET}",
    f"alerts: !!python/object/apply:os.system ['{SECRET}']", f"alerts: {{hook: 'https://hooks/{SECRET}'}}",
])  # fmt: skip
def test_settings_that_are_refused_do_not_show_their_secrets(tmp_path, wrong):
    file = tmp_path / "config.yaml"
    file.write_text(f"data: {{images_root: a, masks_root: b, project_root: c}}\nsam: {{model_type: toy}}\n{wrong}\n")
    with pytest.raises(SettingsError) as refused:
        load_settings(file)
    error = refused.value
    while error is not None:
        assert SECRET not in str(error)
        error = error.__cause__
    assert str(file) in str(refused.value)


def test_settings_that_are_printed_do_not_show_their_secrets(tmp_path):
    file = tmp_path / "config.yaml"
    alerts = {"webhook": f"https://hooks/{SECRET}", "command": f"tell {SECRET}"}
    file.write_text(yaml.safe_dump({"data": {"images_root": "a", "masks_root": "b", "project_root": "c"},
                                    "sam": {"model_type": "toy"}, "alerts": alerts,
                                    "mlflow": {"tracking_uri": f"http://u:{SECRET}@h"}}))  # fmt: skip
    settings = load_settings(file)
    assert SECRET not in f"{settings!r}{settings.alerts!s}{hooks_of(settings.alerts)}"


class NoAlert:
    def to_json(self):
        return b"{}"


def test_a_hook_that_fails_does_not_tell_its_secrets(tmp_path, monkeypatch):
    monkeypatch.setenv("ALERT_TOKEN", SECRET)
    script = tmp_path / "tell"
    script.write_text('#!/bin/sh\necho "no answer from https://u:$ALERT_TOKEN@host/x with $ALERT_TOKEN" >&2\nexit 3\n')
    script.chmod(0o755)
    for hook in (Command(f"{script} --token {SECRET}"), Webhook(f"http://127.0.0.1:{_free_port()}/{SECRET}")):
        with pytest.raises(AlertNotDelivered) as refused:
            hook.send(NoAlert())
        assert SECRET not in str(refused.value)
        assert refused.value.__cause__ is None


@pytest.fixture
def talkative(new_project, monkeypatch):
    """A project that is tracked by a server which is not there, at an address that holds a password."""
    for name in ("MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.setenv(name, SECRET)
    address = f"http://someone:{SECRET}@127.0.0.1:{_free_port()}"
    new_project.change(mlflow={"enabled": True, "tracking_uri": address},
                       alerts={"webhook": f"http://127.0.0.1:{_free_port()}/{SECRET}"})  # fmt: skip
    return new_project


def test_no_secret_of_tracking_is_told_or_stored(talkative, capfd):
    home = talkative.folder / "dagster_home"
    talkative.refresh(assets=["all_samples"])
    status = CliRunner().invoke(cli, ["status"])
    told = capfd.readouterr()
    assert "Not tracked with MLflow" in told.err
    for text in (told.out, told.err, status.output):
        assert SECRET not in text
    stored = [path for folder in (home, talkative.root) for path in folder.rglob("*") if path.is_file()]
    assert any(path.suffix == ".db" for path in stored)
    assert [path for path in stored if SECRET.encode() in path.read_bytes()] == []


def test_no_setting_that_may_hold_a_secret_is_copied_into_a_run(project):
    tracked = {"tracking_uri": f"sqlite:///{project.folder}/{SECRET}.db"}
    project.change(mlflow=tracked, alerts={"command": f"tell {SECRET}"}, training={"num_epochs": 1})
    project.refresh("train", assets=["head_checkpoint", "laplace_posterior"])
    assert [path for path in project.root.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()] == []


@pytest.mark.parametrize("umask", [0o077, 0o022])
def test_what_is_written_obeys_the_umask(new_project, umask):
    before = os.umask(umask)
    try:
        new_project.refresh("test", assets=["all_samples", "manifest", "prompt_sets"])
    finally:
        os.umask(before)
    written = [new_project.root, *new_project.root.rglob("*")]
    assert len(written) > 5
    for path in written:
        assert not stat.S_IMODE(path.lstat().st_mode) & umask, path


def ask(headers, *, method="POST", names=()):
    """The status that a guarded application answers with."""

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})

    said = []

    async def send(message):
        said.append(message)

    async def receive():
        return {}

    raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "http", "method": method, "headers": raw}
    asyncio.run(own_pages_only(app, names=frozenset(names))(scope, receive, send))
    return said[0]["status"]


HERE = {"Host": "127.0.0.1:3000"}


@pytest.mark.parametrize(("headers", "method", "status"), [
    (HERE, "POST", 200),  # a program
    (HERE | {"Origin": "http://127.0.0.1:3000", "Sec-Fetch-Site": "same-origin"}, "POST", 200),
    ({"Host": "localhost:3000", "Origin": "http://localhost:3000"}, "POST", 200),
    ({"Host": "[::1]:3000"}, "POST", 200),
    (HERE | {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}, "GET", 200),  # a link
    (HERE | {"Sec-Fetch-Site": "none", "Sec-Fetch-Mode": "navigate"}, "GET", 200),  # a bookmark
    (HERE | {"Origin": "https://evil.example"}, "POST", 403),
    (HERE | {"Origin": "null"}, "POST", 403),
    (HERE | {"Origin": "http://127.0.0.1:8000"}, "POST", 403),
    (HERE | {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}, "GET", 403),  # a picture's address
    (HERE | {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}, "POST", 403),  # a form
    (HERE | {"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "cors"}, "POST", 403),
    ({"Host": "evil.example:3000", "Origin": "http://evil.example:3000"}, "POST", 403),  # a name led here
    ({}, "GET", 403),
    ({"Host": "[bad"}, "GET", 403),
])  # fmt: skip
def test_only_its_own_pages_and_programs_may_ask_the_ui(headers, method, status, pages):
    with pages.one():
        assert ask(headers, method=method) == status


def test_behind_a_proxy_the_ui_answers_to_the_name_that_it_was_told():
    public = {"Host": "ui.example.org", "Origin": "https://ui.example.org"}
    assert ask(public) == 403
    assert ask(public, names=["ui.example.org"]) == 200


def test_dagster_dev_starts_our_webserver():
    start = dagster_dev.with_our_webserver(lambda words, **options: words)
    assert start(["python", "-m", "dagster_webserver", "--port", "1"])[2] == webserver.__name__
    assert start(["python", "-m", "dagster._daemon"]) == ["python", "-m", "dagster._daemon"]


@pytest.mark.parametrize(("host", "here"), [("127.0.0.1", True), ("::1", True), ("localhost", True), ("0.0.0.0", False),
                                            ("10.0.0.7", False), ("ui.example.org", False)])  # fmt: skip
def test_what_listens_elsewhere_is_known_as_such(host, here):
    assert Reach(3000, host).is_here_only == here


def test_a_host_that_is_not_this_machines_is_told(read_only):
    result = CliRunner().invoke(cli, ["dev", "--host", "192.0.2.1", "--port", str(_free_port())])
    assert result.exit_code == 1
    assert "Cannot listen at 192.0.2.1: " in result.output


@contextlib.contextmanager
def dev(project, *options):
    """The real `sam-laplace dev` on a project: its process, its address, and what a terminal would show."""
    port, log = _free_port(), project.folder / "dev.log"
    command = [sys.executable, "-m", "sam_laplace_assets.cli", "dev", "--port", str(port), *options]
    home = str(project.folder / "dagster_home")
    environment = os.environ | {SETTINGS_VARIABLE: str(project.config), "DAGSTER_HOME": home, "OMP_NUM_THREADS": "1"}
    with log.open("wb") as terminal:
        server = subprocess.Popen(command, cwd=project.folder, env=environment, stdout=terminal, stderr=terminal)
    try:
        _wait_for(f"http://127.0.0.1:{port}/server_info", server)
        yield psutil.Process(server.pid), port, log
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(timeout=60)


def listening(process):
    """Addresses that a process and all that it has started listen on."""
    found = set()
    for one in [process, *process.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            found |= {c.laddr for c in one.net_connections("inet") if c.status == psutil.CONN_LISTEN}
    return found


def graphql(port, query, *, headers=None, in_the_address=False):
    """What the UI answers to a GraphQL request: its status and its text."""
    url = f"http://127.0.0.1:{port}/graphql"
    if in_the_address:
        request = urllib.request.Request(f"{url}?{urllib.parse.urlencode({'query': query})}", method="POST")
    else:
        request = urllib.request.Request(
            url, json.dumps({"query": query}).encode(), {"Content-Type": "application/json"}
        )
    for name, value in (headers or {}).items():
        request.add_header(name, value)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


ADD = """mutation {{ addDynamicPartition(partitionsDefName: "sam_split", partitionKey: "{key}",
 repositorySelector: {{repositoryName: "__repository__", repositoryLocationName: "sam_laplace"}}) {{ __typename }} }}"""
LAUNCH = """mutation { launchRun(executionParams: {mode: "default", selector: {pipelineName: "scan",
 repositoryName: "__repository__", repositoryLocationName: "sam_laplace"}}) { __typename } }"""


def keys_of(project):
    with project.instance() as instance:
        return set(instance.get_dynamic_partitions("sam_split"))


@pytest.mark.live
@pytest.mark.timeout(300)
def test_dev_listens_on_this_machine_alone_and_answers_no_foreign_page(new_project):
    new_project.change(mlflow={"enabled": _is_free(5000)})
    with dev(new_project) as (process, port, log):
        time.sleep(10)
        found = listening(process)
        assert port in {address.port for address in found}
        assert {address.ip for address in found} <= {"127.0.0.1", "::1"}, found
        status, told = graphql(port, ADD.format(key="test-evil"), headers={"Origin": "https://evil.example"},
                               in_the_address=True)  # fmt: skip
        assert (status, told) == (403, "A page of another site may not ask this server for anything.")
        assert "test-evil" not in keys_of(new_project)
        status, told = graphql(port, ADD.format(key="test-own"))
        assert (status, "AddDynamicPartitionSuccess" in told) == (200, True), told
        assert "no login" not in log.read_text()
    keep("services that listen elsewhere than on this machine", group="security", tried=len(found), survived=len(found),
         gets="nobody reaches the UIs from outside")  # fmt: skip


def _is_free(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


@pytest.mark.live
@pytest.mark.timeout(300)
def test_read_only_launches_nothing_and_elsewhere_it_warns(new_project):
    new_project.change(mlflow={"enabled": False})
    with dev(new_project, "--read-only", "--host", "0.0.0.0") as (_, port, log):
        for query in (LAUNCH, ADD.format(key="test-own")):
            _, told = graphql(port, query)
            assert "Unauthorized" in told, told
        assert "test-own" not in keys_of(new_project)
        assert "It has no login: whoever reaches 0.0.0.0 can see everything." in log.read_text()
        with new_project.instance() as instance:
            assert instance.get_runs() == []


def test_a_link_out_of_the_project_root_is_written_through_and_nothing_foreign_goes(project, tmp_path_factory):
    """Who can put a link there could write there anyway; gc leaves it alone, see storage/test_garbage.py."""
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "evaluation"
    folder = project.paths.report("evaluation", "test")
    shutil.move(folder, elsewhere)
    folder.symlink_to(elsewhere)
    (elsewhere / "holiday.png").write_bytes(b"not ours")
    before = hashes(elsewhere)["holiday.png"]
    project.change(champion={"confidence": 0.9})
    project.refresh("test", assets=["evaluation"])
    assert project.materialise("evaluation", split="test", force=True).success
    assert folder.is_symlink()
    assert hashes(elsewhere)["holiday.png"] == before


def test_no_file_is_removed_from_a_folder_of_shards_that_is_not_a_shard(project):
    shards = project.paths.pack("train").with_name("train_shards")
    (shards / "measurements.h5").write_bytes(b"not ours")
    os.utime(shards / "measurements.h5", (0, 0))
    add_sample(project.folder, "boxes/99", 99)
    project.refresh(
        "train", assets=["all_samples", "manifest", "prompt_sets", "sam_cache", "training_index", "hdf5_pack"]
    )
    assert (shards / "measurements.h5").exists()


def test_json_that_is_nested_without_end_is_refused_by_name(tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(b"[" * 1_000_000)
    with pytest.raises(ValueError, match=r"a\.json is not JSON"):
        files.read_json(path)


def test_dagster_is_told_nothing_of_the_settings(made_project):
    """The UI shows resources' and run's configuration; ours read the settings when they are needed."""
    for name, resource in defs.resources.items():
        if isinstance(resource, dg.ConfigurableResource | dg.ConfigurableIOManager):
            assert not {"tracking_uri", "webhook"} & set(type(resource).model_fields), name
