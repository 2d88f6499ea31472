"""`cluster.yaml` passes Ray's own schema and puts the package on every node."""

from pathlib import Path

import yaml

ROOT = Path(__file__).parent.parent


def test_cluster_file_passes_rays_schema() -> None:
    from ray.autoscaler._private.util import fillout_defaults, validate_config

    config = yaml.safe_load((ROOT / "cluster.yaml").read_text(encoding="utf-8"))
    validate_config(fillout_defaults(config))


def test_every_node_gets_the_package_and_the_shared_store() -> None:
    config = yaml.safe_load((ROOT / "cluster.yaml").read_text(encoding="utf-8"))
    mounted = [target for target, source in config["file_mounts"].items() if source == "."]
    assert mounted, "ray submit copies only one script: file_mounts must bring the package"
    installs = [command for command in config["setup_commands"] if "pip install" in command]
    assert any(mounted[0].removeprefix("~/") in command for command in installs)
    assert any("SLOTGRID_STORE" in command and "RAY_ADDRESS" in command for command in config["setup_commands"])
    assert config["available_node_types"]["gpu"]["max_workers"] > 0
