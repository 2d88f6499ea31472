"""What is recorded holds no secret: keys by their look, passwords in addresses, whatever the environment calls a secret."""

import io

import pytest

from orchestrator.redaction import RedactingStream, redact

KEY = "A1b2" * 8


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        (f"401 for hf_{KEY}", "401 for [redacted]"),
        (f"api_key='sk-proj-{KEY}'", "api_key='[redacted]'"),
        ("postgresql://ann:s3cret@db:5432/mlflow", "postgresql://[redacted]@db:5432/mlflow"),
        ("https://:s3cret@host/x", "https://[redacted]@host/x"),
        (
            "headers={'Authorization': 'Bearer abc', 'Accept': '*/*'}",
            "headers={'Authorization': '[redacted]', 'Accept': '*/*'}",
        ),
        ("authorization: Basic YW5uOnM=", "authorization: [redacted]"),
        (f"sent with Bearer {KEY}", "sent with Bearer [redacted]"),
        ("https://cdn/x?X-Amz-Signature=0f3a&expires=9", "https://cdn/x?X-Amz-Signature=[redacted]&expires=9"),
    ],
)
def test_secrets_are_known_by_their_look(text: str, clean: str):
    assert redact(text) == clean


@pytest.mark.parametrize(
    "text",
    [
        "hf_hub_download failed: see https://huggingface.co/docs@main",
        "task-force-of-the-whole-department",
        "the bearer of bad news; 12 tokens: key error in user@host:/path",
        "sqlite:////home/ann/runs/mlflow.db at 10:30@noon",
    ],
)
def test_harmless_text_stays_as_it_is(text: str):
    assert redact(text) == text


def test_values_of_secret_variables_are_secrets_and_others_are_not(monkeypatch: pytest.MonkeyPatch):
    for name in ("MLFLOW_TRACKING_PASSWORD", "OPENAI_API_KEY", "AWS_ACCESS_KEY_ID", "hf_token", "WANDB_APIKEY"):
        monkeypatch.setenv(name, f"horse-{name}")
        assert redact(f"it is <horse-{name}>") == "it is <[redacted]>"
    for name in ("TOKENIZERS_PARALLELISM", "SSH_KEY_PATH", "MONKEYS_HOME"):
        monkeypatch.setenv(name, "harmless-value")
    monkeypatch.setenv("DEBUG_KEY", "1")
    assert redact("harmless-value 1") == "harmless-value 1"


def test_a_stream_redacts_a_secret_that_comes_in_pieces_and_keeps_incomplete_lines():
    target = io.StringIO()
    stream = RedactingStream(target)
    print("key", f"sk-{KEY[:20]}", end="", file=stream)
    assert target.getvalue() == ""
    print(KEY, "end", file=stream)
    assert target.getvalue() == "key [redacted] end\n"
    stream.write("50 %\r")
    stream.flush()
    stream.write("100 %\n")
    assert target.getvalue() == "key [redacted] end\n50 %\r100 %\n"
