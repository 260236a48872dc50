"""A hub that does not answer is told at once."""

from __future__ import annotations

import httpx
import pytest
from huggingface_hub import constants

from gymrl.agents.policies import UnknownPolicy, open_policy
from gymrl.rl.policy import PolicyFault, check_source

NAME = "some-lab/no-such-model-1b"


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The addresses that were asked; none answers."""
    found: list[str] = []

    def head(url: str, timeout: float) -> None:
        assert timeout <= 10
        found.append(url)
        raise httpx.ConnectError("Name or service not known")

    monkeypatch.setattr(httpx, "head", head)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    return found


def test_a_hub_that_does_not_answer_is_asked_once(asked: list[str]) -> None:
    with pytest.raises(PolicyFault, match=r"does not answer .*: name a folder, or 'tiny'"):
        check_source(NAME)
    with pytest.raises(UnknownPolicy, match="not in the cache of this machine"):
        open_policy(NAME)
    assert asked == [constants.ENDPOINT] * 2


def test_what_is_cached_needs_no_hub(asked: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    snapshot = tmp_path / ("models--" + NAME.replace("/", "--")) / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("abc")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    check_source(NAME)
    assert asked == []


def test_offline_nothing_is_asked(asked: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    check_source(NAME)
    assert asked == []
