"""Every shipped algorithm trains: a few steps of a whole run on a toy environment, stopped and resumed where it has
state of its own; and combinations that make no sense are refused."""

from __future__ import annotations

import itertools
import json
import math
import sys
from pathlib import Path
from statistics import fmean

import pytest
import torch
from transformers import AutoModelForCausalLM

from gymrl.envs import Action, Environment, register
from gymrl.rl.demonstrations import DemonstrationFault
from gymrl.rl.folder import RunFault, RunFolder
from gymrl.rl.recipes import RecipeError, algorithms, dump, load, parse
from gymrl.rl.run import train

sys.path.insert(0, str(Path(__file__).parent))
import toy_env


class Guess(Environment):
    """Two turns, the second a guess at a letter that nothing tells: a policy that copies the oracle wins half."""

    runs = "inline"
    max_turns = 3

    def reset(self) -> str:
        self.turn, self.letter = 0, self.rng.choice("ab")
        return "Ready?"

    def step(self, action: Action) -> tuple[str, float, bool]:
        self.turn += 1
        return "a or b?", float(self.turn == 2 and action.text == self.letter), self.turn == 2

    def recognises(self, action: Action) -> bool:
        return bool(action.text)

    def oracle(self) -> str:
        return "y" if self.turn == 0 else self.letter


class Mute(Environment):
    """An environment whose author wrote no oracle."""

    runs = "inline"

    def reset(self) -> str:
        return "Go."

    def step(self, action: Action) -> tuple[str, float, bool]:
        return "Done.", 0.0, True


register("toy/Mute-v0", Mute)


class Steps(toy_env.Letters):
    """Letters that a parameter pays otherwise."""

    def __init__(self, share: int = 2) -> None:
        self.share = share

    def step(self, action: Action) -> tuple[str, float, bool]:
        text, reward, done = super().step(action)
        return text, reward / self.share, done


register("toy/Guess-v0", Guess)
register("toy/Steps-v0", Steps)
GUESS = ["env.id=toy/Guess-v0", "sft.steps=60", "sft.lr=5e-3"]
SMALL = [
    "model.tiny={hidden=32, heads=2, kv_heads=1, layers=1}", "sft.demonstrations=8",
    "sft.steps=2", "sft.batch=4", "rl.steps=3", "rl.tasks=2", "rl.group=3", "rl.schedule.warmup=0", "eval.tasks=2",
    "rft.rounds=2", "rft.steps=2", "rft.tasks=3", "preference.tasks=6", "preference.samples=4", "preference.steps=2",
    "es.steps=2", "es.population=3", "es.tasks=2", "es.sigma=0.05", "es.alpha=0.1",
    "sampling.max_tokens=6", "log.checkpoint_every=1", "log.trackers=[]", 'rl.void="keep"', "env.id=toy/Letters-v0",
]  # fmt: skip


def rows(run: Path, stage: str = "rl") -> list[dict]:
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row for row in found if row["stage"] == stage]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return AutoModelForCausalLM.from_pretrained(folder).state_dict()


def bare(row: dict) -> dict:
    return {key: value for key, value in row.items() if not key.startswith("time/")}


ONLINE = [name for name in algorithms() if "rl" in load(name).stages]
LEARNING = [
    'stages=["rl"]', "rl.steps=24", "rl.tasks=6", "rl.group=8", "rl.lr=1e-2", "log.checkpoint_every=100",
    "log.episodes_every=100",
]  # fmt: skip


@pytest.mark.parametrize("name", ONLINE)
def test_every_online_algorithm_learns_a_toy(name, tmp_path):
    """From random weights: random text is paid 0.69 here, and every algorithm finds the letters that pay more."""
    assert train(name, [*SMALL, *LEARNING], None, tmp_path / "run") == 0
    assert load(tmp_path / "run" / "recipe.toml").algo == name
    found = rows(tmp_path / "run")
    assert all(math.isfinite(v) for row in found for v in row.values() if isinstance(v, float))
    rewards = [row["reward"] for row in found]
    assert fmean(rewards[-5:]) > fmean(rewards[:2]) + 0.07


@pytest.mark.parametrize("name", [name for name in algorithms() if name not in ONLINE])
def test_every_other_algorithm_trains(name, tmp_path):
    compares = any(stage in ("rft", "preference") for stage in load(name).stages)
    assert train(name, [*SMALL, *(GUESS if compares else [])], None, tmp_path / "run") == 0
    recipe = load(tmp_path / "run" / "recipe.toml")
    assert recipe.algo == name
    stage = recipe.stages[-1]
    found = rows(tmp_path / "run", stage)
    assert len(found) >= 2
    assert all(math.isfinite(v) for row in found for v in row.values() if isinstance(v, float))
    before = weights(
        tmp_path / "run" / "checkpoints" / (recipe.stages[-2] if len(recipe.stages) > 1 else "base")
    )
    after = weights(tmp_path / "run" / "policy")
    assert any(not torch.equal(before[key], after[key]) for key in before)


STATEFUL = {
    "critic": ["algo=ppo"],
    "moving reference": ['rl.kl={ref="average", coefficient=0.1, decay=0.5}'],
    "soup as reference": ['rl.kl={ref="soup(base, start)", coefficient=0.1}'],
    "kl in reward": ['rl.kl={place="reward", estimator="k1", ref="base", coefficient=0.1}'],
    "difficulty": ['rl.curriculum={kind="difficulty", tasks=4, samples=2, every=1}'],
    "horizon": ['rl.curriculum={kind="horizon", stages=[1, 2], every=1, advance="plateau"}'],
    "resampling": ["rl.resample=2", "rl.updates=2", "rl.correction=reject"],
    "rounds of dpo": ["algo=online-dpo", *GUESS, "preference.rounds=2", "preference.steps=3"],
    "kto": ["algo=kto", *GUESS, "preference.steps=4"],
    "rejection sampling": ["algo=rft", *GUESS, "rft.steps=3"],
    "evolution": ["algo=es", "es.steps=3"],
    "prefixes": ["algo=prefix-rft"],
    "notes": ["algo=nat", *GUESS, "rft.steps=3"],
    "epochs": ["algo=ppo", "rl.updates=2", "rl.epochs=2"],
    "supervised": ['stages=["sft"]', "sft.steps=4"],
    "anchor": ["algo=anchored-dft", "sft.steps=4"],
    "critic of turns, alone at first": ["algo=ppo-two-level", "rl.critic.warmup=1"],
    "demonstrations beside RL": ["algo=sft-rl", "sft.tokens={dft=true, masked=0.2}"],
    "environments by stage": ['rl.curriculum={kind="staged", stages=[{}, {share=1}], every=2}', "env.id=toy/Steps-v0"],
    "horizon by validation": [
        'rl.curriculum={kind="horizon", stages=[1, 2], every=1, advance="plateau", gain=2, validate_on=2}',
        "rl.steps=4",
    ],
    "lisa": ['learner.trainable={name="lisa", layers=1, redraw=1}'],
    "half": ['learner.trainable={name="half", redraw=1}'],
    "three stages": ["algo=sft-rl-dpo", *GUESS, "preference.steps=3"],
}


@pytest.mark.parametrize("case", STATEFUL)
def test_a_resumed_run_equals_an_uninterrupted_one(case, tmp_path, monkeypatch):
    overrides = [*SMALL, *STATEFUL[case]]
    assert train("quickstart", overrides, None, tmp_path / "whole") == 0
    log = RunFolder.log

    last = load("quickstart", overrides).stages[-1]

    def broken(self, found):
        if found["stage"] == last and found["step"] == 2:
            raise RuntimeError("the power fails")
        log(self, found)

    monkeypatch.setattr(RunFolder, "log", broken)
    with pytest.raises(RuntimeError, match="power"):
        train("quickstart", overrides, None, tmp_path / "cut")
    monkeypatch.undo()
    assert train(None, [], tmp_path / "cut") == 0
    one, two = (weights(tmp_path / name / "policy") for name in ("whole", "cut"))
    assert all(torch.equal(one[key], two[key]) for key in one)
    stage = load(tmp_path / "cut" / "recipe.toml").stages[-1]
    a, b = (rows(tmp_path / name, stage) for name in ("whole", "cut"))
    assert len(a) >= 3
    assert [bare(row) for row in a] == [bare(row) for row in b]
    if "kl" in case or "reference" in case:
        assert any(row["kl"] != 0 for row in a)
    if case == "critic":
        assert a[-1]["value_loss"] > 0
    if case == "horizon by validation":
        # The second look is no gain on the first, and the next stage, the last one, is looked at no more.
        assert [row["curriculum"] for row in a] == [0, 0, 1, 1] and ["validation" in row for row in a] == [1, 1, 0, 0]
    if case == "environments by stage":
        assert [row["curriculum"] for row in a] == [0, 0, 1]


REFUSED = [
    (["rl.loss=reinforce", "rl.updates=2"], "no ratio"),
    (["rl.loss=reinforce", "rl.epochs=2"], "no ratio"),
    (["rl.group=1"], "one alone says nothing"),
    (["algo=rloo", "rl.group=1"], "'rloo' compares a group's episodes"),
    (["rl.advantage=gae"], "needs values: add [rl.critic]"),
    (["rl.critic={lr=1e-3}"], "uses no values"),
    (["algo=gigpo", "rl.credit=turn"], "is for advantages that compare"),
    (["algo=ppo", "rl.group=1", "rl.resample=1"], "one episode alone never has any"),
    (['stages=["rl"]', "rl.sft_weight=0.1", "sft.tokens.anchor=0.1"], "is of the stage sft"),
    (["rl.void.in_baseline=true"], "always count"),
    (["rl.aggregation.length=3.0"], "divisor of rl.aggregation = 'constant'"),
    (["rl.kl={decay=0.5}"], "is of a moving reference"),
    (["rl.overlong={limit=10, buffer=20}"], "cannot be more than the limit"),
    (["sft.tokens.blank=3"], "is a setting of sft.tokens.masked"),
    (["sft.tokens.key_most=3"], "is a setting of sft.tokens.key"),
    (["learner.trainable.redraw=3"], "is of half and lisa"),
    (["learner.trainable={name='half', layers=1}"], "is of lisa"),
    (["rl.loss.hihg=0.3"], "did you mean 'high'"),
    (["rl.loss=clpi"], "did you mean 'clip'"),
    (["rl.advantage.gamma=0.5"], "has no setting 'gamma'"),
    (["algo=gigpo", "rl.advantage.gamma=1.5"], "less than or equal to 1"),
    (["algo=grop"], "did you mean 'grpo'"),
    (["rll.steps=3"], "unknown recipe key 'rll': did you mean 'rl'"),
    (["rl.advantage=nowhere.py:mine"], "cannot be imported"),
    (["rl.kl={place=\"middle\"}"], "rl.kl.place"),
    (["rl.kl={estimator='k1'}"], "has no gradient in the loss"),
    (["rl.kl={ref='nowhere'}"], "no checkpoint's folder"),
    (["rl.kl={ref='soup()'}"], "written soup(FOLDER, FOLDER)"),
    (["rl.kl={ref='soup(start'}"], "written soup(FOLDER, FOLDER)"),
    (["rl.correction=icepop", "rl.correction.low=5", "rl.correction.high=0.5"], "no token would be left"),
    (["rl.correction=reject", "rl.correction.low=3", "rl.correction.high=2"], "no token would be left"),
    (["rl.loss.low=2"], "set 1 or less"),
    (["rl.loss.dual=0.5"], "set more than 1, or 0"),
    (["algo=ppo", "rl.critic.warmup=80", "rl.steps=80"], "the policy never"),
    (["algo=prefix-rft", "rl.prefix.first=0.1", "rl.prefix.last=0.9"], "rl.prefix.last is above"),
    (['stages=["sft"]', "rl.advantage=nonsense"], "there is no advantage 'nonsense'"),
    (['stages=["sft"]', "preference.loss=nonsense"], "there is no preference 'nonsense'"),
    (['stages=["sft", "sft"]'], "names 'sft' twice"),
    (["sft.tokens.key=("], "is no regular expression"),
    (["sft.lr=inf"], "finite"),
    (["sampling.temperature=nan"], "finite"),
    (["name=../elsewhere"], "without slashes"),
    (["name="], "names a folder too"),
    (['stages=["es"]', "learner.trainable=lisa"], "freezes parameters"),
    (["engine.kind=vlm"], "did you mean 'vllm'"),
    (["algo=dpo", "preference.loss.bta=1"], "did you mean 'beta'"),
]  # fmt: skip


@pytest.mark.parametrize(("overrides", "words"), REFUSED)
def test_senseless_combinations_are_refused_with_a_reason(overrides, words):
    with pytest.raises(RecipeError) as error:
        load("quickstart", overrides)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_an_algorithm_lies_over_a_recipe_and_under_its_own_overrides(tmp_path):
    plain, ppo = load("quickstart"), load("quickstart", ["algo=ppo"])
    assert (ppo.env, ppo.rl.lr, ppo.rl.void) == (plain.env, plain.rl.lr, plain.rl.void)
    assert ppo.rl.advantage.name == "gae" and ppo.rl.critic is not None
    changed = load("quickstart", ["rl.advantage.lam=0.5", "algo=ppo"])
    assert changed.rl.advantage.settings == {"lam": 0.5}
    (tmp_path / "run.toml").write_text(dump(ppo))
    assert load(tmp_path / "run.toml") == ppo
    other = load(tmp_path / "run.toml", ["algo=drgrpo"])
    assert other.rl.critic is None and other.rl.advantage.name == "drgrpo"
    mine = parse({"name": "mine", "algo": "gspo", "rl": {"loss": {"name": "gspo", "low": 0.1}}})
    assert mine.rl.loss.settings == {"low": 0.1} and mine.rl.aggregation.name == "seq-mean-token-mean"
    assert load("gspo").name == "gspo" and load("gspo").env == plain.env


@pytest.mark.parametrize("name", ["ppo", "reinforce++", "remax", "gigpo"])
def test_groups_without_spread_are_sampled_anew_for_every_advantage(name, tmp_path):
    overrides = [*SMALL, f"algo={name}", "rl.resample=2", "rl.steps=2", "env.id=toy/Guess-v0", 'stages=["rl"]']
    with pytest.raises(RunFault, match="no token is left"):  # nothing is ever won: no group has spread
        train("quickstart", [*overrides, "rl.steps=3"], None, tmp_path / "flat")
    assert [row["dropped_groups"] for row in rows(tmp_path / "flat")] == [6, 6, 6]
    overrides[-2:] = ["env.id=toy/Letters-v0", 'stages=["rl"]']
    assert train("quickstart", overrides, None, tmp_path / "run") == 0
    assert all(row["drop_rate"] == 0 and row["actions"] > 0 for row in rows(tmp_path / "run"))


def test_prefixes_need_an_oracle(tmp_path, capsys):
    with pytest.raises(DemonstrationFault, match="no oracle"):
        overrides = [*SMALL, "env.id=toy/Mute-v0", 'stages=["rl"]', "model.path=" + str(tmp_path / "seen")]
        assert train("quickstart", [*SMALL, 'stages=["sft"]', "sft.steps=1"], None, tmp_path / "tiny") == 0
        (tmp_path / "tiny" / "policy").rename(tmp_path / "seen")
        train("prefix-rft", overrides, None, tmp_path / "run")


def test_a_run_that_cannot_train_stops_with_a_checkpoint_and_says_why(tmp_path, capsys):
    overrides = [*SMALL, "rl.steps=9", "rl.max_staleness=0", "log.checkpoint_every=9", "learner.spike=1e-9"]
    with pytest.raises(RunFault, match=r"3 steps in a row .* times its usual"):
        train("quickstart", [*overrides, "sft.steps=1", "rl.steps=20"], None, tmp_path / "run")
    assert "an update was skipped: the gradient's norm" in capsys.readouterr().out
    found = rows(tmp_path / "run")
    assert [row["skipped"] for row in found[-4:]] == [0, 1, 1, 1]
    assert (tmp_path / "run" / "checkpoints" / f"rl-step-{len(found):06d}").is_dir()
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["skipped"] == {"the gradient's norm": 3}


def test_stages_are_one_recipe_each_starting_from_the_last(tmp_path):
    staged = ['stages=["sft", "rft", "rl", "preference", "es"]', 'rl.kl={ref="start"}', "rl.lr=1e-3"]
    assert train("quickstart", [*SMALL, *GUESS, *staged], None, tmp_path / "run") == 0
    names = ["base", "sft", "rft", "rl", "preference", "es"]
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert [stage["name"] for stage in summary["stages"]] == names
    folders = [weights(tmp_path / "run" / "checkpoints" / name) for name in names]
    changes = [max((b[key] - a[key]).abs().max().item() for key in a) for a, b in itertools.pairwise(folders)]
    assert (
        all(change > 0 for change in changes) and changes[1] < 0.1
    )  # a few small steps on from the last stage
    first = rows(tmp_path / "run")[0]
    assert first["kl"] == pytest.approx(
        0, abs=1e-6
    )  # the reference is what the RL stage began with, not the base
    assert (tmp_path / "run" / "report.html").exists()
    policy = weights(tmp_path / "run" / "policy")
    assert all(torch.equal(policy[key], folders[-1][key]) for key in policy)


def test_preferences_are_learnt_from_a_file_too(tmp_path):
    small = [*SMALL, *GUESS, "algo=dpo"]
    assert train("quickstart", small, None, tmp_path / "sampled") == 0
    file = tmp_path / "sampled" / "episodes" / "preference" / "000000.jsonl"
    assert train("quickstart", [*small, f"preference.data={file}"], None, tmp_path / "read") == 0
    one, two = (rows(tmp_path / name, "preference") for name in ("sampled", "read"))
    # The same episodes, the same SFT start: the same steps, but for what only a round that samples reports.
    assert [row["loss"] for row in one] == [row["loss"] for row in two] and one[0]["pairs"] > 0
    assert not (tmp_path / "read" / "episodes" / "preference").exists()
    with pytest.raises(RecipeError, match="no such file"):
        load("quickstart", ["algo=dpo", "preference.data=nowhere.jsonl"])
    with pytest.raises(RecipeError, match="leave one of them out"):
        load("quickstart", ["algo=online-dpo", f"preference.data={file}"])
