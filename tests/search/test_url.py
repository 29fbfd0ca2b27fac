"""No form of a password reaches a message, a traceback or a file."""

import traceback

import optuna
import pytest

from metaprune.core.errors import ConfigError, SearchError
from metaprune.methods.pruningnet import METHOD
from metaprune.search.storage import opened
from metaprune.search.url import has_secret, shown_url, without_secrets

SECRET = "S3CRETWORD"
URLS = [
    f"postgresql+psycopg://u:{SECRET}@127.0.0.1:1/db",
    f"postgresql+psycopg://127.0.0.1:1/db?user=u&password={SECRET}",
    f"postgresql+psycopg://127.0.0.1:1/db?pasword={SECRET}",
    f"postgresql+psycopg://u:a@{SECRET}@127.0.0.1:1/db",
    f"postgresql+psycopg://u:a/{SECRET}@127.0.0.1:1/db",
    f"postgresql+psycopg://u:a%40{SECRET}@127.0.0.1:1/db",
    f"postgresql+psycopg://u:a{{{SECRET}}}@127.0.0.1:1/db",
    f"postgresql+psycopg://:{SECRET}@127.0.0.1:1/db",
    f"postgresql:u:{SECRET}@127.0.0.1/db",
    f"postgresql//u:{SECRET}@127.0.0.1/db",
    f"postgresql://u@127.0.0.1:{SECRET}/db",
    f"postgres://u:{SECRET}@127.0.0.1/db",
    f" postgresql://u:{SECRET}@127.0.0.1/db",
    f"mysql://u:{SECRET}@127.0.0.1:1/db",
    f"redis://:{SECRET}@127.0.0.1:1",
    f"mssql+pyodbc://?odbc_connect=UID%3Du%3BPWD%3D{SECRET}",
    f"u:{SECRET}@127.0.0.1",
]


@pytest.mark.parametrize("url", URLS)
def test_a_storage_that_cannot_be_opened_shows_no_password(url, monkeypatch):
    monkeypatch.setattr("metaprune.search.storage._PAUSES_S", ())
    with (
        pytest.raises(SearchError, match="cannot be opened") as caught,
        opened(url, "x", optuna.samplers.RandomSampler()),
    ):
        pass
    assert SECRET not in "".join(traceback.format_exception(caught.value))
    assert SECRET not in shown_url(url)


@pytest.mark.parametrize("url", URLS)
def test_no_file_of_a_run_holds_it(url):
    method = METHOD.method_class()(storage=url)
    with pytest.raises(ConfigError, match=r"\.pgpass.*METAPRUNE_STORAGE") as caught:
        method.public()
    assert SECRET not in str(caught.value)
    assert SECRET not in repr(method)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql+psycopg://u@host:5432/db",
        "postgresql+psycopg://u@host/db?sslmode=require",
        "sqlite:////runs/a@b:c/search.db",
        "sqlite:///file:x?mode=ro&uri=true",
        "journal:/runs/a@b:c.log",
    ],
)
def test_urls_without_a_secret_are_kept(url):
    assert not has_secret(url)
    assert METHOD.method_class()(storage=url).public()["storage"] == url
    assert without_secrets("connection to host refused", url) == "connection to host refused"


def test_what_a_driver_quotes_is_masked_and_the_rest_can_be_read():
    url = "postgresql+psycopg://u:sesame%20open@h/db"
    for quoted in ("'sesame open'", "sesame%20open", "sesame+open", "missing = after sesame"):
        said = without_secrets(f"connection refused: {quoted}", url)
        assert said.startswith("connection refused: ")
        assert "sesame" not in said
