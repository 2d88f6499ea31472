"""An S3 server of our own on the loopback interface, in its own process: it can be killed, and started again empty or as it was."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator

CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "AKIATESTTESTTESTTEST",
    "AWS_SECRET_ACCESS_KEY": "not/a/secret+that+must+not+be+written+anywhere",
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_DEFAULT_REGION": "us-east-1",
}


class ObjectStore:
    """One S3 server with one bucket, "bucket". SIGSTOP makes it silent without losing what it holds in memory."""

    def __init__(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while True:
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}/", timeout=2).close()
                break
            assert self._process.poll() is None and time.monotonic() < deadline, "the server did not start"
            time.sleep(0.1)
        self.client().create_bucket(Bucket="bucket")

    def uri(self, prefix: str) -> str:
        """The address of a store in its bucket."""
        return f"s3://bucket/{prefix}?endpoint_override=127.0.0.1:{self.port}&scheme=http"

    def client(self):
        """Another client than the one under test."""
        import boto3

        return boto3.client(
            "s3",
            endpoint_url=f"http://127.0.0.1:{self.port}",
            aws_access_key_id="other",
            aws_secret_access_key="other",
            region_name="us-east-1",
        )

    def objects(self, prefix: str) -> dict[str, bytes]:
        """Everything below a prefix, by the rest of its name; what pyarrow leaves for folders is left out."""
        client, found = self.client(), {}
        for page in client.get_paginator("list_objects_v2").paginate(Bucket="bucket", Prefix=f"{prefix}/"):
            for item in page.get("Contents", []):
                if not item["Key"].endswith("/"):
                    body = client.get_object(Bucket="bucket", Key=item["Key"])["Body"].read()
                    found[item["Key"].removeprefix(f"{prefix}/")] = body
        return found

    @contextlib.contextmanager
    def silence(self) -> Iterator[None]:
        """For the length of the block the server takes connections and answers none."""
        os.kill(self._process.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self._process.pid, signal.SIGCONT)

    def end(self) -> None:
        """Kill it, and with it all that it holds."""
        self._process.kill()
        self._process.wait()
