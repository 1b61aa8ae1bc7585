"""The address of a team's server is checked and never shown. A real server is asked in test_postgres.py beside this."""

import importlib.util
import socket

import pytest
from sqlalchemy.engine import make_url

from sam_laplace_assets.redaction import HIDDEN, redact
from sam_laplace_assets.resources.postgres import URL_VARIABLE, PostgresUnusable, Server
from sam_laplace_assets.resources.tracking import Store, start

SECRET = "sesame/open"
ENCODED = "sesame%2Fopen"
GOOD = f"postgresql://ada:{ENCODED}@127.0.0.1:5432/dagster"


@pytest.fixture
def named(monkeypatch):
    """The server at an address that the environment names."""

    def name(url):
        monkeypatch.setenv(URL_VARIABLE, url)
        return Server.of_environment()

    return name


@pytest.mark.parametrize(("url", "said"), [
    ("", "is not set"),
    ("sesame/open", "cannot be read as an address"),
    ("postgresql://ada:open@sesame@127.0.0.1:5432/dagster", "has more than one @"),
    (f"postgresql://ada@127.0.0.1:{SECRET}/dagster", "cannot be read as an address"),
    (f"postgres://ada:{ENCODED}@127.0.0.1/dagster", "does not begin with postgresql://"),
    (f"mysql://ada:{ENCODED}@127.0.0.1/dagster", "does not begin with postgresql://"),
    (f"postgresql://ada:{ENCODED}@127.0.0.1", "names no database"),
])  # fmt: skip
def test_an_address_of_no_database_is_refused_by_the_name_of_its_variable_and_not_shown(named, url, said):
    with pytest.raises(PostgresUnusable) as refused:
        named(url)
    assert str(refused.value).startswith(f"{URL_VARIABLE} {said}. Set it to an address such as postgresql://user:")
    assert "sesame" not in str(refused.value)
    assert refused.value.__cause__ is None


def test_without_the_variable_it_is_named(monkeypatch):
    monkeypatch.delenv(URL_VARIABLE, raising=False)
    with pytest.raises(PostgresUnusable, match=f"{URL_VARIABLE} is not set"):
        Server.of_environment()


@pytest.mark.parametrize("missing", ["dagster_postgres", "psycopg2"])
def test_without_the_extra_the_error_says_what_to_install(named, monkeypatch, missing):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == missing else find(name))
    with pytest.raises(PostgresUnusable, match=rf"{missing} is not installed. .*'sam-laplace-assets\[postgres\]'"):
        named(GOOD)


def test_a_server_that_is_not_there_is_told_without_its_password(named):
    with socket.socket() as probe:  # bound and not listening: nobody answers here
        probe.bind(("127.0.0.1", 0))
        server = named(GOOD.replace("5432", str(probe.getsockname()[1])))
        with pytest.raises(PostgresUnusable, match=r"Connection refused\. Look whether the server is up") as refused:
            server.require()
    assert "sesame" not in str(refused.value)
    assert refused.value.__cause__ is None


@pytest.mark.parametrize("scheme", ["postgresql", "postgresql+psycopg2"])
def test_the_driver_is_the_one_that_dagster_is_written_for(named, scheme):
    address = named(GOOD.replace("postgresql", scheme)).address
    assert make_url(address).get_dialect().driver == "psycopg2"
    assert make_url(address).password == SECRET


@pytest.mark.parametrize(("query", "options"), [
    ("", "-csearch_path=mlflow"),
    ("?sslmode=require", "-csearch_path=mlflow"),
    ("?options=-cstatement_timeout%3D9000", "-cstatement_timeout=9000 -csearch_path=mlflow"),
])  # fmt: skip
def test_mlflow_gets_a_schema_of_its_own_in_the_same_database(named, query, options):
    server = named(GOOD + query)
    url, plain = make_url(server.mlflow_address), make_url(server.address)
    assert url.query["options"] == options
    assert url.query.get("sslmode") == plain.query.get("sslmode")
    assert url.set(query={}) == plain.set(query={})


def test_an_instance_in_postgres_has_its_tracking_there_and_its_artifacts_in_the_project_root(read_only, named):
    server = named(GOOD)
    instance = read_only.settings.instance.model_copy(update={"storage": "postgres"})
    settings = read_only.settings.model_copy(update={"instance": instance})
    store = Store.of(settings)
    assert (store.uri, store.server) == (server.mlflow_address, server)
    assert store.artifacts == read_only.root / "mlartifacts"
    assert store.ui == "http://127.0.0.1:5000"
    assert "sesame" not in f"{store!r}{server!r}"


def test_a_server_of_mlflows_own_is_used_all_the_same(read_only, named):
    named(GOOD)
    settings = read_only.settings.model_copy(
        update={
            "instance": read_only.settings.instance.model_copy(update={"storage": "postgres"}),
            "mlflow": read_only.settings.mlflow.model_copy(update={"tracking_uri": "https://mlflow.example.org"}),
        }
    )
    assert Store.of(settings) == Store("https://mlflow.example.org", None)


def test_tracking_without_the_variable_says_so_and_costs_no_data(read_only, monkeypatch):
    monkeypatch.delenv(URL_VARIABLE, raising=False)
    instance = read_only.settings.instance.model_copy(update={"storage": "postgres"})
    run = start(read_only.settings.model_copy(update={"instance": instance}), "manifest[train]", {})
    assert run.client is None
    assert run.problems[0].startswith(f"PostgresUnusable: {URL_VARIABLE} is not set")


@pytest.mark.parametrize("variable", [URL_VARIABLE, "DATABASE"])
@pytest.mark.parametrize("word", ["p@ss:w/rd%#", SECRET, ENCODED])
def test_passwords_of_addresses_in_the_environment_are_known_wherever_they_stand(monkeypatch, variable, word):
    monkeypatch.setenv(variable, f"postgresql://ada:{word}@127.0.0.1:5432/dagster?sslmode=require")
    assert redact(f"tried {word} twice") == f"tried {HIDDEN} twice"
    assert redact("nothing of ada at 127.0.0.1") == "nothing of ada at 127.0.0.1"


def test_a_password_is_known_as_it_is_written_and_as_it_is_meant(named):
    named(GOOD)
    assert redact(f"{SECRET} {ENCODED}") == f"{HIDDEN} {HIDDEN}"
