"""What all tests share: examples that are the same on every run, and no verdict that depends on a machine's speed."""

import os
import shutil
import subprocess
import time
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile(
    "gymrl", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("gymrl")


SLOW = (
    "test_train", "test_algorithms_runs", "test_engine_vllm_server", "test_stopping", "test_docs",
    "test_sandbox_attacks",
)  # fmt: skip
"""Files that take minutes: begun first, so that no process is left alone with one at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    order = {name: place for place, name in enumerate(SLOW)}
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))


@pytest.fixture(scope="session")
def docker_engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a Docker engine: the one that is there, or one started for the tests; else they are skipped."""
    from gymrl.sandboxes import SandboxUnavailable
    from gymrl.sandboxes.container import connect

    try:
        connect().close()
    except SandboxUnavailable as unavailable:
        if os.geteuid() or not (dockerd := shutil.which("dockerd", path=f"{os.environ['PATH']}:/usr/sbin")):
            pytest.skip(f"{unavailable} (for tests as root, installing Debian's docker.io is enough)")
    else:
        yield os.environ.get("DOCKER_HOST", "")
        return
    folder = tmp_path_factory.mktemp("docker")
    address = f"unix://{folder}/sock"
    with (folder / "log").open("wb") as log:
        engine = subprocess.Popen(
            [dockerd, "--data-root", folder / "data", "--exec-root", folder / "exec", "-p", folder / "pid",
             "-H", address, "--bridge=none", "--iptables=false", "--ip6tables=false", "--ip-forward=false",
             "--ip-masq=false"], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
        )  # fmt: skip
    before = os.environ.get("DOCKER_HOST")
    os.environ["DOCKER_HOST"] = address
    try:
        for _ in range(150):
            try:
                connect().close()
                break
            except SandboxUnavailable:
                if engine.poll() is not None:
                    break
                time.sleep(0.2)
        else:
            engine.kill()
        if engine.poll() is not None:
            pytest.skip(f"no Docker engine runs here: {(folder / 'log').read_text()[-300:]}")
        yield address
    finally:
        if before is None:
            del os.environ["DOCKER_HOST"]
        else:
            os.environ["DOCKER_HOST"] = before
        engine.terminate()
        engine.wait(30)
