"""An MLflow server's own words (its REST interface) against the files of a finished run: runs, states, and every point of every metric.

The interface is spoken to directly, so that neither the code under test nor MLflow's client stands between.
"""

from __future__ import annotations

import json
import urllib.error
import urllib.parse
import urllib.request
from typing import Any

from benchmarks.chaos_accounting import MirrorCheck, compare_points, file_points
from orchestrator.layout import RunFolder
from orchestrator.results import read_result


def check_mirror(uri: str, experiment: str, run: RunFolder) -> MirrorCheck:
    """Compare what the server holds of a finished run with its folder."""
    check = MirrorCheck()
    found = _call(uri, "experiments/get-by-name", {"experiment_name": experiment}, missing_ok=True)
    if not found:
        return MirrorCheck(runs=[f"there is no experiment {experiment}"])
    identity = found["experiment"]["experiment_id"]
    runs = _search(uri, identity, "")
    parents = [found for found in runs if found["info"]["run_id"] == run.mlflow_run_id.read_text().strip()]
    if not parents:
        return MirrorCheck(runs=[f"the run that {run.mlflow_run_id} names is not there"])
    children = _search(uri, identity, f"tags.`mlflow.parentRunId` = '{parents[0]['info']['run_id']}'")
    for mirrored in [*parents, *children]:
        if mirrored["info"]["status"] != "FINISHED":
            check.runs.append(f"run {mirrored['info']['run_name']} is {mirrored['info']['status']}")
    by_name: dict[str, list[str]] = {}
    for child in children:
        by_name.setdefault(child["info"]["run_name"], []).append(child["info"]["run_id"])
    for folder in map(run.trial, sorted(path.name for path in run.trials.iterdir())):
        name, ids = folder.path.name, by_name.pop(folder.path.name, [])
        if len(ids) != 1:
            check.runs.append(f"{name} has {len(ids)} runs")
        for run_id in ids[:1]:
            result = read_result(folder)
            results = result.scores | result.validation_scores
            results |= {f"cost/{cost}": value for cost, value in result.costs.items()}
            check.add(compare_points(name, file_points(folder), _points(uri, run_id), results=results))
    check.runs += [f"run {name} belongs to no trial" for name in by_name]
    return check


def count_parents(uri: str, experiment: str) -> int:
    """The grids that the server knows: a grid that was resumed must not have become two."""
    found = _call(uri, "experiments/get-by-name", {"experiment_name": experiment})
    runs = _search(uri, found["experiment"]["experiment_id"], "")
    return sum("mlflow.parentRunId" not in {tag["key"] for tag in run["data"].get("tags", [])} for run in runs)


def _points(uri: str, run_id: str) -> list[tuple[str, int, float, int]]:
    run = _call(uri, "runs/get", {"run_id": run_id})["run"]
    points = []
    for name in {metric["key"] for metric in run["data"].get("metrics", [])}:
        query = {"run_id": run_id, "metric_key": name, "max_results": "1000"}
        while True:
            page = _call(uri, "metrics/get-history", query)
            points += [
                (name, int(point.get("step", 0)), float(point["value"]), int(point["timestamp"]))
                for point in page.get("metrics", [])
            ]
            if not page.get("next_page_token"):
                break
            query["page_token"] = page["next_page_token"]
    return points


def _search(uri: str, experiment_id: str, condition: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    body: dict[str, Any] = {"experiment_ids": [experiment_id], "filter": condition, "max_results": 500}
    while True:
        page = _call(uri, "runs/search", body=body)
        found += page.get("runs", [])
        if not page.get("next_page_token"):
            return found
        body["page_token"] = page["next_page_token"]


def _call(
    uri: str,
    method: str,
    query: dict[str, str] | None = None,
    *,
    body: dict[str, Any] | None = None,
    missing_ok: bool = False,
) -> dict[str, Any]:
    """One request. `missing_ok`: {} for what is not there."""
    address = f"{uri}/api/2.0/mlflow/{method}" + (f"?{urllib.parse.urlencode(query)}" if query else "")
    data = json.dumps(body).encode() if body is not None else None
    request = urllib.request.Request(address, data=data, headers={"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            answer: dict[str, Any] = json.load(response)
    except urllib.error.HTTPError as error:
        if missing_ok and error.code == 404:
            return {}
        raise
    return answer
