"""The `gymrl` command: what it prints, where, and with which exit code."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from gymrl.cli import train as train_module
from gymrl.cli.main import app, run, sentence
from gymrl.envs import Action, Environment, EnvironmentFault, Tool, register
from gymrl.leaderboards import results as results_module
from gymrl.leaderboards.suite import update_hash

GYMRL = [sys.executable, "-m", "gymrl.cli.main"]


class Parrot(Environment):
    """Say what is said.

    loud: whether it shouts.
    """

    max_turns = 3

    def __init__(self, loud: bool = False, word: str = "hello") -> None:
        self.loud, self.word = loud, word

    def reset(self) -> str:
        return f"Say {self.word}" + "!" * self.loud

    def step(self, action: Action) -> tuple[Any, ...]:
        if self.word == "crash":
            raise RuntimeError("the parrot is gone")
        if self.word == "stop":
            os.kill(os.getpid(), signal.SIGINT)
        right = action.text == self.word
        return "Right." if right else "Again.", float(right), right

    def oracle(self) -> str:
        return self.word

    def recognises(self, action: Action) -> bool:
        return bool(action.text)


class Bell(Environment):
    """Ring the bell as often as it says."""

    max_turns = 2

    def tools(self) -> tuple[Tool, ...]:
        times = {"type": "object", "properties": {"times": {"type": "integer"}}, "required": ["times"]}
        return (Tool("ring", "Rings the bell.", times),)

    def reset(self) -> str:
        return "Ring it three times."

    def step(self, action: Action) -> tuple[Any, ...]:
        rung = sum(call.arguments["times"] for call in action.tool_calls if call.name == "ring")
        return f"It rang {rung} times.", float(rung == 3), rung == 3


register("test/Parrot-v0", Parrot, source="a-test")
register("test/Bell-v0", Bell, source="a-test")


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = run(list(arguments))
    said = capsys.readouterr()
    return code, said.out, said.err


@pytest.fixture(autouse=True)
def _plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.delenv("GYMRL_DEBUG", raising=False)


# -- the command itself --------------------------------------------------------------------------------------


def test_help_and_the_list_of_environments_do_without_torch() -> None:
    program = (
        "import sys; from gymrl.cli.main import run; code = run(sys.argv[1:]);"
        "assert not {'torch', 'transformers'} & set(sys.modules); sys.exit(code)"
    )
    for arguments in (["--help"], ["envs", "list"], ["envs", "info", "gymrl/CodeInterpreter-v0"]):
        done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert "reward" in done.stdout


def test_the_installed_command_says_its_version_and_reports_errors() -> None:
    done = subprocess.run([*GYMRL, "--version"], capture_output=True, text=True)
    assert (done.returncode, done.stdout.split()[0]) == (0, "gymrl")
    done = subprocess.run(
        [*GYMRL, "eval", "--env", "gymrl/CodeInterpreter-v1", "--policy", "oracle"],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert (
        done.stderr
        == "gymrl: unknown environment 'gymrl/CodeInterpreter-v1': did you mean 'gymrl/CodeInterpreter-v0'?\n"
    )


def test_unknown_commands_suggest_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = call(capsys, "evl")
    assert code == 2 and "Did you mean 'eval'?" in err
    code, _, err = call(capsys, "leaderboard", "shwo")
    assert code == 2 and "Did you mean 'show'?" in err


def test_errors_are_one_sentence_and_tracebacks_are_asked_for(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, out, err = call(capsys, "envs", "demo", "test/Parrot-v0", "--param", "lound=true")
    assert (code, out, err) == (
        2,
        "",
        "gymrl: test/Parrot-v0 has no parameter 'lound': did you mean 'loud'?\n",
    )
    code, _, err = call(capsys, "envs", "demo", "test/Parrot-v0", "--param", "loud")
    assert code == 2 and "write KEY=VALUE" in err
    code, _, err = call(capsys, "envs", "demo", "test/Parrot-v0", "--param", "word='crash'")
    assert (code, err) == (
        1,
        "gymrl: test/Parrot-v0 raised RuntimeError: the parrot is gone (test_cli.py:44 in step): mend the environment "
        "(`gymrl --debug envs ...` shows more)\n",
    )
    monkeypatch.setenv("GYMRL_DEBUG", "1")
    with pytest.raises(EnvironmentFault, match="the parrot is gone"):
        run(["envs", "demo", "test/Parrot-v0", "--param", "word='crash'"])


def test_sentences() -> None:
    assert sentence(OSError(28, "No space left on device", "a/b")).startswith(
        "no space is left on the disk (a/b): free"
    )
    assert sentence(FileNotFoundError(2, "No such file or directory", "x")) == "no such file or directory (x)"
    assert sentence(ExceptionGroup("several", [ValueError("first\n  line"), KeyError("x")])) == "first line"
    assert "unexpected KeyError" in sentence(KeyError("x"))
    full = RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")
    assert sentence(full) == "no space is left on the disk: free some and run it again"


# -- envs ----------------------------------------------------------------------------------------------------


def test_envs_list_shows_where_from_and_what_is_missing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from gymrl.envs import registry

    monkeypatch.setattr(registry, "_ENTRIES", dict(registry._ENTRIES))
    register("test/Missing-v0", "no_such_module_at_all:X", extra="textworld")
    code, out, _ = call(capsys, "envs", "list")
    assert code == 0
    lines = {line.split("│")[1].strip(): line for line in out.splitlines() if "│" in line}
    assert "not installed, see below" in lines["test/Missing-v0"]
    assert "a-test" in lines["test/Parrot-v0"] and "Say what is said." in lines["test/Parrot-v0"]
    assert out.splitlines()[-1].endswith('pip install "gymrl[textworld]"')  # whole, however narrow the terminal


def test_envs_info(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, "envs", "info", "test/Parrot-v0", "--param", "loud=true")
    assert code == 0
    for part in ("version 1, from a-test", "loud: whether it shouts.", "word = 'hello'", "2147483648 test",
                 "at most 3", "Say hello!"):  # fmt: skip
        assert part in out


def test_envs_demo_and_play(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    code, out, _ = call(capsys, "envs", "demo", "test/Parrot-v0")
    assert code == 0 and "[turn 1: reward 1]" in out and "success after 1 turn, reward 1" in out
    monkeypatch.setattr(sys, "stdin", io.StringIO("two\nlines\n.\n\nhello\n\n"))
    code, out, _ = call(capsys, "envs", "play", "test/Parrot-v0")
    assert code == 0 and "[turn 1: reward 0]" in out and "[turn 2: reward 0, void]" in out
    assert "success after 3 turns, reward 1" in out
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    code, out, _ = call(capsys, "envs", "play", "test/Parrot-v0")
    assert code == 0 and out.endswith("You left.\n")


def test_play_takes_tool_calls(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    ring = '<tool_call>{"name": "ring", "arguments": {"times": %d}}</tool_call>\n\n'
    monkeypatch.setattr(sys, "stdin", io.StringIO(ring % 2 + ring % 3))
    code, out, _ = call(capsys, "envs", "play", "test/Bell-v0")
    assert code == 0 and "tool ring(times)" in out
    assert "It rang 2 times." in out and "[turn 2: reward 1]" in out and "success after 2 turns" in out


# -- eval and episodes ---------------------------------------------------------------------------------------


def test_eval_prints_success_with_its_interval(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = call(capsys, "eval", "--env", "test/Parrot-v0", "--policy", "oracle", "--n", "16")
    assert (code, err) == (0, "")
    assert "1.000  (95 % interval 0.806 to 1.000)" in out and "16 terminated" in out
    code, out, _ = call(capsys, "eval", "--env", "test/Parrot-v0", "--policy", "null", "--n", "5", "--samples", "2",
                        "--max-turns", "2", "--json")  # fmt: skip
    data = json.loads(out)
    assert (data["success"], data["episodes"], data["void_turns"]) == (0.0, 10, 1.0)
    assert data["endings"] == {"truncated:max_turns": 10} and data["turns"] == 2.0


def test_eval_where_nothing_is_valid_fails(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = call(capsys, "eval", "--env", "test/Parrot-v0", "--policy", "oracle", "--n", "3",
                          "--param", "word=crash")  # fmt: skip
    assert code == 1 and "environment: RuntimeError: the parrot is gone" in out
    assert "-  (no episode is valid)" in out and "0.000" not in out
    assert (
        err
        == "gymrl: no episode was valid; the first cause is environment: RuntimeError: the parrot is gone "
        "(test_cli.py:44 in step)\n"
    )


def test_eval_of_a_policy_there_is_not(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = call(capsys, "eval", "--env", "test/Parrot-v0", "--policy", "orakle")
    assert (code, err) == (2, "gymrl: unknown policy 'orakle': did you mean 'oracle'?\n")
    code, _, err = call(capsys, "eval", "--env", "test/Parrot-v0", "--policy", "http://127.0.0.1:9")
    assert code == 1 and "no server answers at http://127.0.0.1:9/v1" in err and err.count("\n") == 1
    code, _, err = call(capsys, "eval", "--env", "test/Parrot-v0", "--policy", "oracle", "--out", "x.csv")
    assert code == 2 and "neither FILE.jsonl nor FILE.parquet" in err


def test_an_interrupted_eval_says_that_nothing_was_kept(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = call(capsys, "eval", "--env", "test/Parrot-v0", "--policy", "oracle", "--n", "4",
                          "--param", "word=stop")  # fmt: skip
    assert (code, out) == (130, "")
    assert err == "interrupted; nothing was kept: with --out FILE the same command goes on where it was\n"


def test_a_url_that_is_no_vllm_server_is_told_before_its_model_is_looked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Models(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'{"data": [{"id": "fake"}]}')

        def log_message(self, format: str, *args: Any) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Models)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        url = f"http://127.0.0.1:{server.server_port}"
        served = ["--policy", f"{url}/v1#fake", "--engine", "vllm-server"]
        for command in (
            ["eval", "--env", "test/Parrot-v0"],
            ["leaderboard", "run", "quickstart", "--out", str(tmp_path)],
        ):
            code, _, err = call(capsys, *command, *served)
            assert code == 1 and f"something answers at {url} that is no vLLM server" in err
    finally:
        server.shutdown()
        server.server_close()
    assert not list(tmp_path.iterdir())


def test_episodes_are_written_shown_and_converted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("pyarrow")
    first, second, third = tmp_path / "a.jsonl", tmp_path / "a.parquet", tmp_path / "b.jsonl"
    call(capsys, "eval", "--env", "test/Parrot-v0", "--policy", "oracle", "--n", "4", "--out", str(first))
    code, out, _ = call(capsys, "episodes", str(first), "--parquet", str(second), "--show", "1")
    assert code == 0 and "user: Say hello\nassistant: hello" in out and "-- terminated, reward 1" in out
    code, out, _ = call(capsys, "episodes", str(second), "--jsonl", str(third))
    assert code == 0 and third.read_text() == first.read_text()
    code, out, _ = call(capsys, "episodes", str(second))
    assert code == 0 and "4 terminated" in out
    code, _, err = call(capsys, "episodes", str(tmp_path / "none.jsonl"))
    assert code == 2 and "there is no file" in err
    third.write_text("{}\n")
    code, _, err = call(capsys, "episodes", str(third))
    assert code == 2 and "b.jsonl, line 1: not a conversation" in err


# -- leaderboards --------------------------------------------------------------------------------------------


def test_leaderboard_run_show_compare(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(results_module, "PUBLISHED", tmp_path / "published")
    monkeypatch.chdir(tmp_path)
    suite = tmp_path / "parrot.toml"
    suite.write_text(
        'name = "parrot"\ntitle = "Parrots"\nenv = "test/Parrot-v0"\nenv_version = "1"\n'
        'indices = { count = 8 }\nturns = 2\nhash = ""\n'
    )
    code, _, err = call(capsys, "leaderboard", "run", "parrot.toml", "--policy", "oracle")
    assert code == 2 and "has no hash yet: write the line hash = " in err
    assert "`gymrl leaderboard hash parrot.toml --update`" in err
    assert call(capsys, "leaderboard", "show", "parrot.toml") == (2, "", err)
    code, out, _ = call(capsys, "leaderboard", "hash", "parrot.toml", "--update")
    assert code == 0 and out.strip() in suite.read_text() and update_hash(suite) == out.strip()
    for policy in ("oracle", "null"):
        assert call(capsys, "leaderboard", "run", "parrot.toml", "--policy", policy)[0] == 0
    code, out, err = call(capsys, "leaderboard", "show", "parrot.toml")
    assert (code, err) == (0, "") and out.index("oracle") < out.index("null")
    assert "1.000 [0.676, 1.000]" in out and "gymrl leaderboard run parrot.toml --policy oracle" in out
    code, out, _ = call(capsys, "leaderboard", "show", "parrot.toml", "--json")
    assert [row["policy"] for row in json.loads(out)["parrot"]] == ["oracle", "null"]
    files = sorted(str(p) for p in Path("results/parrot").glob("*.json"))
    code, out, _ = call(capsys, "leaderboard", "compare", files[1], files[0])
    assert code == 0 and "A - B +1.000" in out and "A was better on 8, B on 0; exact p = 0.0078" in out
    code, out, _ = call(capsys, "leaderboard", "publish", files[1], "--folder", str(tmp_path / "published"))
    assert code == 0 and json.loads(Path(out.strip()).read_text())["episodes"] == ""
    code, out, err = call(capsys, "leaderboard", "compare", files[1], out.strip())
    assert code == 0 and "A - B +0.000" in out and "A and B are the same result" in err
    for command in (["show", "parrot"], ["run", "parrot", "--policy", "null"]):
        code, _, err = call(capsys, "leaderboard", *command)
        assert code == 2 and "a suite of your own is named by its file, such as parrot.toml" in err
    suite.write_text(suite.read_text().replace("turns = 2", "turns = 3"))
    code, _, err = call(capsys, "leaderboard", "run", "parrot.toml", "--policy", "null")
    assert code == 2 and "was changed" in err
    assert call(capsys, "leaderboard", "show", "parrot.toml") == (2, "", err)
    code, out, _ = call(capsys, "leaderboard", "list")
    assert code == 0 and "quickstart" in out and "textworld" in out


def test_an_interrupted_leaderboard_says_that_it_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    suite = tmp_path / "parrot.toml"
    suite.write_text(
        'name = "parrot"\ntitle = "Parrots"\nenv = "test/Parrot-v0"\nenv_version = "1"\n'
        'indices = { count = 8 }\nturns = 2\nhash = ""\n[params]\nword = "stop"\n'
    )
    update_hash(suite)
    code, _, err = call(
        capsys, "leaderboard", "run", str(suite), "--policy", "oracle", "--out", str(tmp_path / "out")
    )
    kept = tmp_path / "out" / "parrot"
    assert (code, err) == (
        130,
        f"interrupted; what was played is kept in {kept}, the same command goes on\n",
    )
    assert list(kept.glob("*.partial"))


# -- train and report ----------------------------------------------------------------------------------------


def test_train_tells_recipes_from_overrides(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import gymrl.rl.run as training

    calls: list[Any] = []

    def train(recipe: str | None, overrides: list[str], resume: Path | None, out: Path | None) -> int:
        calls.append((recipe, overrides, resume, out))
        return 0 if recipe != "stopped.toml" else 130

    monkeypatch.setattr(training, "train", train)
    monkeypatch.chdir(tmp_path)
    for name in ("mine.toml", "stopped.toml"):
        Path(name).write_text('name = "mine"')
    assert run(["train"]) == 0
    assert run(["train", "seed=1", "rl.steps=2"]) == 0
    assert run(["train", "mine.toml", "seed=1", "--out", "runs/x"]) == 0
    assert run(["train", "--resume", "runs/x"]) == 0
    assert run(["train", "stopped.toml"]) == 130
    assert calls == [
        (None, [], None, None),
        (None, ["seed=1", "rl.steps=2"], None, None),
        ("mine.toml", ["seed=1"], None, Path("runs/x")),
        (None, [], Path("runs/x"), None),
        ("stopped.toml", [], None, None),
    ]
    assert run(["train", "a", "b"]) == 2
    assert run(["train", "a", "--resume", "runs/x"]) == 2
    assert len(calls) == 5


def test_a_wrong_recipe_is_told_before_torch_is_loaded() -> None:
    code = "import sys; from gymrl.cli.main import run; run(['train', 'rl.step=3']); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False" and "did you mean 'rl.steps'?" in done.stderr


def test_another_environment_leaves_out_the_recipes_parameters() -> None:
    from gymrl.rl.recipes import load

    assert load("quickstart").sft.params and load("quickstart").env.params["terms"] == 2
    other = load("quickstart", ["env.params.size=3", "env.id=acme/Maze-v0"])
    assert other.env.params == {"size": 3} and other.sft.params == {}
    same = load("quickstart", ["env.params.terms=3", "env.id=gymrl/CodeInterpreter-v0"])
    assert same.env.params["digits"] == 2 and same.env.params["terms"] == 3 and same.sft.params


def test_a_finished_run_is_not_run_again(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    from gymrl.rl.folder import RunFolder
    from gymrl.rl.recipes import dump, load

    folder = RunFolder.create(tmp_path / "run", dump(load("quickstart")))
    folder.write_text("summary.json", '{"status": "finished"}')
    assert not folder.finished()  # the policy is still to be written
    (folder.path / "policy").mkdir()
    before = {path: path.stat().st_mtime_ns for path in folder.path.rglob("*")}
    code, out, _ = call(capsys, "train", "--resume", str(folder.path))
    assert code == 0 and "nothing is left to do" in out
    assert before == {path: path.stat().st_mtime_ns for path in folder.path.rglob("*")}


def test_report_refuses_a_folder_that_holds_no_run(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    code, _, err = call(capsys, "report", str(tmp_path))
    assert code == 2 and "holds no run" in err and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "mend"),
    [
        (["envs", "info", "gymrl/CodeInterpreter-v0", "--split", "tests"], "did you mean 'test'?"),
        (
            ["eval", "--env", "gymrl/CodeInterpreter-v0", "--policy", "null", "--split", "x"],
            "take one of train, val, test",
        ),
        (
            ["envs", "info", "gymrl/CodeInterpreter-v0", "--param", "digits=xx"],
            "parameter 'digits' takes a whole number, not 'xx'",
        ),
    ],
)
def test_a_wrong_split_or_parameter_is_a_sentence(
    capsys: pytest.CaptureFixture[str], arguments: list[str], mend: str
) -> None:
    code, _, err = call(capsys, *arguments)
    assert code == 2 and mend in err and "unexpected" not in err


def test_train_lists_the_shipped_recipes(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, "train", "--list")
    assert code == 0 and "quickstart" in out


def test_train_with_an_unknown_recipe_is_a_sentence(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = call(capsys, "train", "quickstrat")
    assert code in (1, 2) and "'quickstart'" in err and err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_report_of_nothing_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = call(capsys, "report", "no/such/run")
    assert code == 2 and "there is no folder no/such/run" in err


def test_the_command_works_under_typers_runner_too() -> None:
    result = CliRunner().invoke(app, ["--help"], env={**os.environ})
    assert result.exit_code == 0 and "leaderboard" in result.output
    assert train_module.split_arguments(["a=b", "r"]) == ("r", ["a=b"])


def test_every_key_of_a_recipe_is_listed_with_its_meaning(capsys: pytest.CaptureFixture[str]) -> None:
    from gymrl.rl.recipes import described, keys

    code, out, _ = call(capsys, "train", "--keys")
    assert code == 0
    listed = {line.split(" = ")[0].strip(): line.partition("  # ")[2] for line in out.splitlines() if line}
    assert set(keys()) <= set(listed) == {key.name for key in described()}
    assert all(listed.values()) and listed["rl.kl.coefficient"]


def test_a_policy_trained_with_other_parameters_says_which(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gymrl.cli.evaluate import trained_otherwise

    run_folder = tmp_path / "run"
    policy = run_folder / "checkpoints" / "rl"
    policy.mkdir(parents=True)
    played = {"word": "hello"}
    assert trained_otherwise(str(policy), "test/Parrot-v0", played) == ""  # no run's
    recipe = run_folder / "recipe.toml"
    recipe.write_text('[env]\nid = "test/Parrot-v0"\nparams = {word = "good bye", loud = true}\n')
    told = "--param 'word=good bye' --param loud=true"
    assert trained_otherwise(str(policy), "test/Parrot-v0", played) == told
    monkeypatch.chdir(policy)
    assert trained_otherwise(".", "test/Parrot-v0", played) == told
    assert trained_otherwise(str(policy), "test/Parrot-v0", {"word": "good bye", "loud": True}) == ""
    recipe.write_text('[env]\nid = "test/Parrot-v0"\n')
    assert trained_otherwise(str(policy), "test/Parrot-v0", played) == "none"  # written out it makes other tasks
    recipe.write_text('[env]\nid = "gymrl/CodeInterpreter-v0"\n')
    assert trained_otherwise(str(policy), "test/Parrot-v0", played) == ""


def test_a_folder_of_episodes_is_told_from_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "episodes").mkdir()
    (tmp_path / "episodes" / "eval-sft.jsonl").write_text("")
    code, _, err = call(capsys, "episodes", str(tmp_path))
    assert code == 2 and "eval-sft.jsonl" in "".join(err.split())
