import shlex

import pytest

from tracking.redaction import names_secret, redact
from tracking.source import command

SECRET = "s3cr3t-Value/1"


@pytest.mark.parametrize(
    "text",
    [
        f"password={SECRET}",
        f"MLFLOW_TRACKING_PASSWORD={SECRET} muva run demo",
        f'{{"api_key": "{SECRET}"}}',
        f"aws_secret_access_key: {SECRET}",
        f"muva run --hub-token {SECRET} demo",
        f"muva run --hub-token={SECRET}",
        f"Authorization: Bearer {SECRET}",
        "postgresql://muva:s3cr3t-Value@db:5432/mlflow",
        "https://s3cr3t-Value@git.example.org/muva",
        "AKIAABCDEFGHIJKLMNOP",
        "hf_abcdefghijklmnopqrstuvwxyz0123",
        "postgresql://muva:s3cr3t/Va@lue@db:5432/mlflow",
        'password="s3cr3t with words"',
        "{'token': 's3cr3t; with, signs'}",
        "Authorization: Basic czNjcjN0OnMzY3IzdA==s3cr3t",
        "Server=db;Uid=muva;Pwd=s3cr3t;",
        "https://blob.example.org/a?sv=1&sig=s3cr3t%2B",
        "github_pat_s3cr3tabcdefghijklmnopqrstuvw",
        "ASIAABCDEFGHIJKLMNOP",
        "sk-s3cr3tabcdefghijklmnopqrst",
    ],
)
def test_a_secret_is_masked_and_the_rest_stays(text: str) -> None:
    masked = redact(text)
    assert "***" in masked
    assert not any(part in masked for part in ("s3cr3t", "AKIA", "ASIA", "hf_abc"))
    assert ("demo" in masked) == ("demo" in text)


@pytest.mark.parametrize(
    "text",
    [
        "part_token_init=random context_tokens=4 stage2.lr=1e-5",
        "muva train --sources syn-boulevard,syn-harbour --set prompts.context_tokens=4",
        "sqlite:////home/me/runs/mlflow.db",
        "http://127.0.0.1:5000/#/experiments/1",
        "s3://bucket/prefix: 3 shards of 128 MiB",
        "http://127.0.0.1:8000/crops/a@2x.png and http://127.0.0.1:8000",
        "a basic recipe, designed=1, PWD is no secret",
    ],
)
def test_settings_and_addresses_stay_as_they_are(text: str) -> None:
    assert redact(text) == text


def test_a_secret_of_the_environment_is_masked_everywhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SOME_SERVICE_TOKEN", "plain words here")
    monkeypatch.setenv("OTHER_TOKEN", "a")
    assert redact("x plain words here y a") == "x *** y a"


def test_names_of_secrets_are_distinguished_from_settings() -> None:
    for secret in (
        "hub.auth_token",
        "AWS_SECRET_ACCESS_KEY",
        "PGPASSWORD",
        "MYSQL_PWD",
        "DB_PASS",
        "SSH_PRIVATE_KEY",
        "AZURE_STORAGE_KEY",
        "AZURE_STORAGE_CONNECTION_STRING",
    ):
        assert names_secret(secret), secret
    for setting in (
        "prompts.context_tokens",
        "model.part_token_init",
        "PWD",
        "OLDPWD",
        "SSH_ASKPASS",
        "GOOGLE_APPLICATION_CREDENTIALS",
    ):
        assert not names_secret(setting), setting


def test_the_command_can_be_pasted_and_holds_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["run", "my recipe.yaml", "--set", "name=it's", "--token", SECRET]
    monkeypatch.setattr("sys.argv", ["/opt/venv/bin/muva", *arguments])
    assert shlex.split(command()) == ["muva", *arguments[:-1], "***"]
