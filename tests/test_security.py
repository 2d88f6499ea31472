"""What no change may bring in: code that unpickles files, remote code, servers that listen to the network."""

import ast
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("data", "model", "orchestrator", "experiments", "benchmarks")
UNPICKLING = {"pickle.load", "pickle.loads", "pickle.Unpickler", "cloudpickle.load", "cloudpickle.loads", "joblib.load"}
UNPICKLING |= {
    "dill.load",
    "dill.loads",
    "shelve.open",
    "marshal.load",
    "marshal.loads",
    "pandas.read_pickle",
    "yaml.load",
}
EXECUTING = {"eval", "exec", "os.system", "os.popen"}


def calls() -> Iterator[tuple[str, str, dict[str, str]]]:
    """Every call in our code: where, what is called, its keyword arguments as they are written."""
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call):
                    keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords if keyword.arg}
                    yield f"{path.relative_to(ROOT)}:{node.lineno}", ast.unparse(node.func), keywords


def test_nothing_is_unpickled_and_no_text_is_run():
    found = [(where, name) for where, name, _ in calls() if name in UNPICKLING | EXECUTING]
    assert found == []


def test_torch_loads_weights_alone_and_hub_code_is_never_run():
    loads = [(where, keywords.get("weights_only")) for where, name, keywords in calls() if name == "torch.load"]
    assert loads and {weights_only for _, weights_only in loads} == {"True"}, loads
    remote = [
        (where, keywords["trust_remote_code"]) for where, _, keywords in calls() if "trust_remote_code" in keywords
    ]
    assert remote and {value for _, value in remote} == {"False"}, remote
    numpy_loads = [
        where for where, name, keywords in calls() if name in ("np.load", "numpy.load") and "allow_pickle" in keywords
    ]
    assert numpy_loads == []
    shells = [where for where, _, keywords in calls() if keywords.get("shell") == "True"]
    assert shells == []


def test_every_server_that_is_named_listens_on_loopback():
    named = [ROOT / "Makefile", ROOT / "README.md", ROOT / "cluster.yaml", *sorted((ROOT / "docs").glob("*.md"))]
    hosts = {
        host
        for path in named
        for host in re.findall(r"--(?:dashboard-)?host[= ](\S+)", path.read_text(encoding="utf-8"))
    }
    assert hosts == {"127.0.0.1"}


LISTENING = """
import json, psutil
from orchestrator.ray_session import open_ray
with open_ray():
    processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
    print(json.dumps([
        (process.name(), connection.laddr.ip)
        for process in processes
        for connection in process.net_connections()
        if connection.status == psutil.CONN_LISTEN
    ]))
"""


@pytest.mark.slow
def test_our_own_ray_listens_on_loopback_alone():
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment["PYTHONPATH"] = str(ROOT)
    done = subprocess.run(
        [sys.executable, "-c", LISTENING], env=environment, capture_output=True, text=True, check=True
    )
    listening = json.loads(done.stdout.splitlines()[-1])
    assert {name for name, _ in listening} >= {"raylet", "gcs_server"}
    assert {ip for _, ip in listening} <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}, listening
