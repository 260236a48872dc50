"""What fails before a model has said a word: causes arrive, and secrets are shown nowhere."""

from __future__ import annotations

import pickle
import sys
import threading
import types
from collections.abc import Callable
from multiprocessing import Pipe
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError, model_validator
from safetensors.torch import save_file

from gymrl.agents.engines.base import EngineFault, EngineSettings, Generation, Sampling
from gymrl.agents.engines.openai import ChatAgent, headers, split_url
from gymrl.agents.engines.vllm_process import OPENED, Process, broken_weights, portable
from gymrl.cli.main import run
from gymrl.envs.servers import names_user

PLAY = ["eval", "--env", "gymrl/CodeInterpreter-v0", "--n", "1", "--policy"]


# -- what vLLM's process answers ----------------------------------------------------------------------------


class Unsendable(ValueError):
    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.lock = threading.Lock()


class TwoArguments(RuntimeError):
    """Is pickled, and cannot be unpickled: its __init__ wants more than its text."""

    def __init__(self, what: str, where: str) -> None:
        super().__init__(f"{what} in {where}")


def refused_configuration() -> ValidationError:
    """What vLLM raises for a checkpoint that it cannot read."""

    class Config(BaseModel):
        model: Any

        @model_validator(mode="before")
        @classmethod
        def read(cls, values: Any) -> Any:
            raise ValueError("the header ends too early")

    with pytest.raises(ValidationError) as raised:
        Config(model=threading.Lock())
    return raised.value


def answers(settings: EngineSettings, core: Callable[[EngineSettings], Any], monkeypatch: Any) -> Any:
    """What the process says to being started with these settings and such a core."""
    module: Any = types.ModuleType("gymrl.agents.engines.vllm_core")
    module.VllmCore = core
    monkeypatch.setitem(sys.modules, module.__name__, module)
    ours, theirs = Pipe()
    with ours, theirs:
        ours.send_bytes(pickle.dumps(settings))
        ours.send_bytes(pickle.dumps([("start", [(1, "a"), (2, "b")])]))
        ours.send_bytes(pickle.dumps([("close",)]))
        Process(theirs).serve()
        said = []
        while ours.poll(0):
            said += pickle.loads(ours.recv_bytes())
        return said


@pytest.mark.parametrize(
    ("error", "type_", "text"),
    [
        (refused_configuration(), EngineFault, "ValidationError: Value error, the header ends too early"),
        (Unsendable("no such dtype"), EngineFault, "Unsendable: no such dtype"),
        (TwoArguments("a hole", "the file"), EngineFault, "TwoArguments: a hole in the file"),
        (SystemExit(3), EngineFault, "SystemExit: 3"),
        (ValueError("too long"), ValueError, "too long"),
        (ValueError(threading.Lock()), ValueError, "<unlocked _thread.lock object at"),
        (EngineFault("take another"), EngineFault, "take another"),
    ],
)
def test_why_vllm_cannot_be_opened_arrives(error, type_, text, monkeypatch):
    def core(settings: EngineSettings) -> Any:
        raise error

    ((number, result),) = answers(EngineSettings("vllm", "org/name"), core, monkeypatch)
    assert number == OPENED and type(result) is type_ and str(result).startswith(text)
    assert "\n" not in str(result)


def test_one_answer_that_cannot_be_sent_takes_no_other_with_it(monkeypatch):
    done = Generation((5,), (-0.5,), (0,), "stop")

    class Core:
        def __init__(self, settings: EngineSettings) -> None:
            self.answers: list[Any] = []

        def start(self, asked: Any) -> None:
            self.answers += [(1, done), (2, Unsendable("a bad prompt"))]

        def step(self) -> bool:
            return False

        def stop(self) -> None:
            return

    opened, first, second = answers(EngineSettings("vllm", "org/name"), Core, monkeypatch)
    assert opened == (OPENED, None) and first == (1, done)
    assert second[0] == 2 and repr(second[1]) == repr(EngineFault("Unsendable: a bad prompt"))


def test_notes_do_not_keep_an_error_from_being_sent():
    error = ValueError("too long")
    error.__notes__ = [threading.Lock()]  # type: ignore[list-item]
    assert repr(pickle.loads(pickle.dumps(portable(error)))) == "ValueError('too long')"


@pytest.mark.parametrize("size", [0, 5, 60, 200])
def test_a_file_of_weights_that_was_cut_is_named(size, tmp_path, monkeypatch):
    def core(settings: EngineSettings) -> Any:
        raise refused_configuration()

    file = tmp_path / "model-2.safetensors"
    for path in (tmp_path / "model-1.safetensors", file):
        save_file({"weight": torch.ones(100)}, path)
    assert broken_weights(tmp_path) is None
    file.write_bytes(file.read_bytes()[:size])
    ((_, result),) = answers(EngineSettings("vllm", tmp_path), core, monkeypatch)
    assert type(result) is EngineFault and str(result).startswith("its model-2.safetensors cannot be read (")
    assert str(result).endswith("): take another checkpoint or copy this one again")


# -- the key, and secrets in a URL --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "key", ["sk-abc\nSECRET", "sk-abc SECRET", "sk-é-SECRET", "SECRET\x7f", "SECRET\udcff"]
)
def test_a_key_that_cannot_be_sent_is_never_shown(key, monkeypatch, capfd, tmp_path):
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with pytest.raises(
        EngineFault, match=r"the key in OPENAI_API_KEY holds a space, .*: set it again"
    ) as raised:
        ChatAgent("http://127.0.0.1:9/v1#model", Sampling())
    assert "SECRET" not in str(raised.value) and "sk-" not in str(raised.value)
    monkeypatch.setenv("COLUMNS", "200")
    out = tmp_path / "episodes.jsonl"
    assert run([*PLAY, "http://127.0.0.1:9", "--json", "--out", str(out)]) == 1
    told = "".join(capfd.readouterr())
    assert "OPENAI_API_KEY" in told and "SECRET" not in told and "sk-" not in told
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("key", ["sk-abc_DEF.1~!", " sk-abc\n"])
def test_a_key_is_sent_without_what_is_around_it(key, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", key)
    assert headers() == {"Authorization": f"Bearer {key.strip()}"}
    monkeypatch.setenv("OPENAI_API_KEY", " \n")
    assert headers() == {}


@pytest.mark.parametrize(
    "url",
    [
        "http://me:SECRET@HOST", "HTTPS://SECRET@HOST:8000/v1#model", "http://me:SECRET@[::1]:8000",
        "http://me:SECRET@HOST:port", "http://me:x/SECRET@HOST", "http://me:SECRET#x@HOST", "http://me:?SECRET@HOST:1",
        "http://me%40here:SECRET@HOST", "http://:SECRET@HOST", "http://me\\@SECRET@HOST", "http://[SECRET@HOST",
        "http://me:12/SECRET@HOST/v1", "http://me:8000/SECRET@HOST", "http://me:8000/SECRET@HOST:8000#model@1",
    ],
)  # fmt: skip
@pytest.mark.parametrize("engine", ["transformers", "vllm-server"])
def test_a_password_in_a_url_is_refused_and_not_repeated(url, engine, capfd, tmp_path):
    out = tmp_path / "episodes.jsonl"
    assert run([*PLAY, url, "--engine", engine, "--json", "--out", str(out)]) == 1
    told = "".join(capfd.readouterr())
    assert "SECRET" not in told and "me:" not in told
    assert (
        "holds a user or a password" in told
        and "write http://HOST:PORT/v1#MODEL and set OPENAI_API_KEY" in told
    )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("url", "base", "model"),
    [
        ("http://host:8000#claude@2", "http://host:8000/v1", "claude@2"),
        ("http://host/v1/@team/x", "http://host/v1/@team/x", ""),
        ("http://[::1]:8000/v1#@cf/model", "http://[::1]:8000/v1", "@cf/model"),
        ("http://vllm:8000/v1/me@home", "http://vllm:8000/v1/me@home", ""),
        ("http://10.0.0.7:8000/x@y:80/v1", "http://10.0.0.7:8000/x@y:80/v1", ""),
        ("https://api.example.com/me@example.com/v1", "https://api.example.com/me@example.com/v1", ""),
        ("http://host:8000/%40team/x", "http://host:8000/%40team/x", ""),
    ],
)
def test_an_at_elsewhere_is_no_user(url, base, model):
    assert split_url(url) == (base, model)


WORDS = st.from_regex(r"[a-z][a-z0-9-]{0,6}", fullmatch=True)
HOSTS = st.one_of(
    WORDS,
    st.lists(WORDS, min_size=2, max_size=3).map(".".join),
    st.sampled_from(["localhost", "10.1.2.3", "[::1]"]),
)
PORTS = st.one_of(st.just(""), st.integers(80, 65535).map(lambda port: f":{port}"))
MODELS = st.sampled_from(["", "#model", "#claude@2", "#@cf/llama", "#org/model@main"])


@given(WORDS, st.from_regex(r"[0-9]{1,5}", fullmatch=True), st.sampled_from("/?#"), st.text("aZ9/?#@:%.", max_size=6),
       HOSTS, PORTS, MODELS)  # fmt: skip
def test_a_password_that_looks_like_a_port_is_found(user, digits, mark, more, host, port, model):
    assert names_user(f"http://{user}:{digits}{mark}{more}x@{host}{port}/v1{model}")


@given(HOSTS, PORTS, st.sampled_from(["", "/v1", "/v1/", "/v1/@team/x", "/@team/x", "/v1/a/b@c"]), MODELS)
def test_an_honest_address_is_no_user(host, port, path, model):
    assert not names_user(f"http://{host}{port}{path}{model}")


def test_what_follows_a_question_mark_is_not_repeated():
    with pytest.raises(
        EngineFault, match=r"has no question mark .*: write http://HOST:PORT/v1#MODEL"
    ) as raised:
        split_url("http://host:8000/v1?key=SECRET#model")
    assert "SECRET" not in str(raised.value)


def test_wrappers_and_recipes_keep_secrets_too(monkeypatch: pytest.MonkeyPatch) -> None:
    from gymrl.envs.wrappers.models import ChatModel
    from gymrl.rl.recipes import RecipeError, load

    for make, fault in (
        (lambda url: ChatModel(url + "#critic"), ValueError),
        (lambda url: load("quickstart", ["engine.kind=vllm-server", f"engine.url={url}"]), RecipeError),
    ):
        with pytest.raises(fault, match="holds a user or a password") as told:
            make("http://me:secret@127.0.0.1:8000/v1")
        assert "secret" not in str(told.value)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-abc\nSECRET")
    with pytest.raises(ValueError, match="the key in OPENAI_API_KEY holds") as told:
        ChatModel("http://127.0.0.1:8000/v1#critic")
    assert "SECRET" not in str(told.value)
