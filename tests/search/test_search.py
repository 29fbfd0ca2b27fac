"""Evolution, its Optuna sampler, storage, workers, resume."""

import json
import multiprocessing
import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
import time
from contextlib import closing

import numpy as np
import optuna
import pytest
import torch
from optuna.storages.journal import JournalFileBackend, JournalStorage

from metaprune.core.errors import ConfigError, SearchError
from metaprune.core.rng import Rng
from metaprune.models import create
from metaprune.search import liveness
from metaprune.search.config import EvolutionConfig, SearchConfig
from metaprune.search.encoding import BudgetSampler, WidthEncoding
from metaprune.search.sampler import StrategySampler
from metaprune.search.strategies import Evaluated, Evolution, GreedySlimming, RandomSearch
from metaprune.search.study import Candidate, Search, best_within, front
from metaprune.tracing import trace

SMALL = EvolutionConfig(population=10, generations=4, parents=4)


@pytest.fixture(scope="module")
def network():
    return trace(create("zoo:mobilenet_v1", num_classes=10, width=0.25), torch.zeros(2, 3, 32, 32))


def gain(network):
    """Known optimum: concave in every width, with weights that differ by group."""
    value = np.random.default_rng(3).uniform(0.2, 3.0, len(network.space))
    full = network.space.widths

    def score(widths):
        return {"score": float((value * np.sqrt(np.asarray(widths) / full)).sum() / value.sum())}

    return score


def search_of(network, searcher="evolution", config=SMALL, share=0.3, seed=0, **options):
    bounds = {"macs": share * network.cost().macs}
    how = SearchConfig(searcher=searcher, evolution=config)
    return Search(WidthEncoding(network.space), network.cost_model(), [bounds], how, Rng(seed), **options)


# ---------------------------------------------------------------------------------------------------- strategies


@pytest.mark.parametrize("searcher", ["evolution", "random", "greedy", "nsga2"])
def test_every_candidate_within_budget_no_duplicates(network, searcher):
    found = search_of(network, searcher).run(gain(network))
    structures = [c.widths for c in found]
    if searcher == "greedy":
        assert found[-1].load <= 1
    else:
        assert len(found) == SMALL.population * SMALL.generations
        assert all(c.load <= 1 for c in found)
        assert len(set(structures)) == len(structures)
        assert all(c.load >= 0.95 for c in found)


def test_nsga2_ends_when_every_structure_is_scored():
    network = trace(create("zoo:mlp", in_channels=1, image_size=4, widths=[6, 6]), torch.zeros(2, 1, 4, 4))
    codec = WidthEncoding(network.space, grid=(0.5, 0.7, 1.0))
    bounds, how = {"macs": network.cost().macs}, SearchConfig(searcher="nsga2", evolution=SMALL, tolerance=1.0)
    found = Search(codec, network.cost_model(), [bounds], how, Rng(0)).run(gain(network))
    assert len({c.widths for c in found}) == len(found) == codec.sizes.prod() == 9


def test_evolution_beats_random_search_at_equal_evaluations(network):
    config = EvolutionConfig(population=20, generations=10, parents=6)
    wins = []
    for seed in range(3):
        best = [
            max(c.score for c in search_of(network, s, config, seed=seed).run(gain(network)))
            for s in ("evolution", "random")
        ]
        wins.append(best[0] - best[1])
    assert min(wins) > 0


def test_the_best_never_gets_worse_and_parents_are_of_all_generations(network):
    found = search_of(network).run(gain(network))
    best = np.maximum.accumulate([c.score for c in found]).reshape(SMALL.generations, -1)[:, -1]
    assert (np.diff(best) >= 0).all()
    assert best[-1] > best[0]


def test_mutation_changes_a_gene_to_another_and_a_tenth_of_them(network):
    codec = WidthEncoding(network.space)
    strategy = Evolution(codec, [], Rng(0), EvolutionConfig())
    parent = codec.random(1, np.random.default_rng(0))
    children = strategy.mutated(parent, 20_000, np.random.default_rng(1))
    changed = children != parent
    assert changed.mean() == pytest.approx(0.1, abs=0.005)  # the paper's 1.3 of 13 genes
    gene = int(codec.sizes.argmax())
    values = children[changed[:, gene], gene]
    counts = np.bincount(values, minlength=codec.sizes[gene])
    assert counts[parent[0, gene]] == 0
    assert (np.delete(counts, parent[0, gene]) > 0).all()


def test_crossover_takes_every_gene_from_two_different_parents(network):
    codec = WidthEncoding(network.space)
    strategy = Evolution(codec, [], Rng(0), EvolutionConfig())
    parents = np.stack([codec.smallest, codec.full])
    children = strategy._crossed(parents, 1000, np.random.default_rng(0))
    assert ((children == codec.smallest) | (children == codec.full)).all()
    assert (children == codec.full).mean() == pytest.approx(0.5, abs=0.02)
    assert len(np.unique(children, axis=0)) > 900


def test_one_search_for_many_budgets(network):
    full = network.cost().macs
    bounds = [{"macs": share * full} for share in (0.1, 0.3, 0.6)]
    config = SearchConfig(evolution=EvolutionConfig(population=12, generations=5, parents=4))
    found = Search(WidthEncoding(network.space), network.cost_model(), bounds, config, Rng(0)).run(gain(network))
    macs = network.cost_model().metric("macs", np.array([c.widths for c in found])) / full
    for share in (0.1, 0.3, 0.6):
        assert 15 <= ((macs <= share) & (macs >= 0.95 * share)).sum() <= 25
    chosen = front(found, macs)
    assert (np.diff(macs[chosen]) > 0).all()
    assert (np.diff([found[i].score for i in chosen]) > 0).all()


def test_greedy_narrows_step_by_step_from_full_width(network):
    codec = WidthEncoding(network.space)
    sampler = BudgetSampler(codec, network.cost_model(), {"macs": 0.4 * network.cost().macs})
    strategy, seen, score = GreedySlimming(codec, [sampler], Rng(0), steps=5), [], gain(network)
    index, loads = 0, []
    while (batch := strategy.batch(index, seen)) is not None:
        assert len(batch) <= len(codec.genes)
        seen += [Evaluated(g, score(codec.widths(g))["score"]) for g in batch]
        loads.append(min(sampler.load(batch)))
        index += 1
    assert index <= 6
    assert loads[-1] <= 1
    with pytest.raises(ConfigError, match="one budget"):
        GreedySlimming(codec, [sampler, sampler], Rng(0))
    slack = GreedySlimming(codec, [BudgetSampler(codec, network.cost_model(), {"macs": network.cost().macs})], Rng(0))
    assert (codec.widths(slack.batch(0, [])) == network.space.widths).all() and slack.batch(1, []) is None


def test_best_and_front_on_a_hand_made_archive(network):
    rows = [
        Candidate(i, tuple(map(int, w)), 0, {"score": s})
        for i, (w, s) in enumerate(
            [(network.space.widths, 0.9), (network.space.widths // 2, 0.7), (network.space.widths // 3, 0.8)]
        )
    ]
    bounds = {"macs": 0.5 * network.cost().macs}
    assert best_within(rows, network.cost_model(), bounds) is rows[2]
    assert best_within(rows, network.cost_model(), {"macs": 1.0}) is None
    assert front(rows, [3.0, 2.0, 1.0]) == [2, 0]


def test_unknown_searcher_and_bad_options():
    with pytest.raises(ConfigError, match="Did you mean 'evolution'"):
        SearchConfig(searcher="evolutoin")
    with pytest.raises(ConfigError, match="population"):
        EvolutionConfig(population=1)


# ---------------------------------------------------------------------------------------------------- Optuna


def test_works_with_study_optimize_like_any_sampler(network):
    codec = WidthEncoding(network.space)
    sampler = BudgetSampler(codec, network.cost_model(), {"macs": 0.3 * network.cost().macs})
    study = optuna.create_study(
        direction="maximize", sampler=StrategySampler(RandomSearch(codec, [sampler], Rng(0), SMALL))
    )

    def objective(trial):
        genome = [trial.suggest_int(g, 0, int(n) - 1) for g, n in zip(codec.genes, codec.sizes, strict=True)]
        assert sampler.load(np.array([genome]))[0] <= 1
        return gain(network)(codec.widths(np.array(genome)))["score"]

    study.optimize(objective, n_trials=45)  # five beyond the strategy's forty
    assert len({tuple(t.params.values()) for t in study.trials}) >= 44


def sequence(candidates):
    return [(c.slot, c.widths, round(c.score, 12)) for c in candidates]


def test_a_stopped_search_goes_on_with_the_same_sequence(network, tmp_path):
    whole = search_of(network).run(gain(network))
    storage, calls = f"sqlite:///{tmp_path / 'search.db'}", 0

    def failing(widths):
        nonlocal calls
        calls += 1
        if calls in (7, 23):
            raise KeyboardInterrupt
        return gain(network)(widths)

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            search_of(network, storage=storage).run(failing)
    assert sequence(search_of(network, storage=storage).run(failing)) == sequence(whole)
    assert calls == len(whole) + 2  # nothing is scored twice
    untouched = search_of(network, storage=storage).run(lambda w: pytest.fail("finished already"))
    assert sequence(untouched) == sequence(whole)


SCRIPT = """
import sys, time, torch
sys.path.insert(0, {tests!r})
from test_search import gain, search_of, sequence
from metaprune.models import create
from metaprune.tracing import trace
torch.set_num_threads(1)
network = trace(create("zoo:mobilenet_v1", num_classes=10, width=0.25), torch.zeros(2, 3, 32, 32))
score = gain(network)
def slow(widths):
    time.sleep(0.02)
    return score(widths)
found = search_of(network, storage=sys.argv[1]).run(slow)
print("FOUND", len(found))
"""


def worker(storage, tests):
    code = textwrap.dedent(SCRIPT.format(tests=tests))
    return subprocess.Popen([sys.executable, "-c", code, storage], stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize("kind", ["journal", pytest.param("sqlite", marks=pytest.mark.thorough)])
def test_killed_workers_leave_no_hole(network, tmp_path, kind):
    """Two processes, one killed with SIGKILL in the middle; the sequence is that of one uninterrupted process."""
    storage = f"sqlite:///{tmp_path / 's.db'}" if kind == "sqlite" else f"journal:{tmp_path / 's.log'}"
    tests = str(__import__("pathlib").Path(__file__).parent)
    if kind == "sqlite":  # two processes that create the tables at once is SQLite's own race
        optuna.create_study(storage=storage, study_name="other")
    victim, other = worker(storage, tests), worker(storage, tests)
    deadline = time.time() + 120
    while time.time() < deadline and victim.poll() is None:
        if scored(storage) >= 8:
            os.kill(victim.pid, signal.SIGKILL)
            break
        time.sleep(0.05)
    victim.wait()
    out, _ = other.communicate(timeout=240)
    assert "FOUND 40" in out
    found = search_of(network, storage=storage).run(lambda w: pytest.fail("finished already"))
    assert sequence(found) == sequence(search_of(network).run(gain(network)))


def storage_of(url):
    if url.startswith("journal:"):
        return JournalStorage(JournalFileBackend(url.removeprefix("journal:")))
    return url


def scored(storage):
    try:
        study = optuna.load_study(storage=storage_of(storage), study_name="search")
    except KeyError:
        return 0
    return sum(t.state.is_finished() for t in study.get_trials(deepcopy=False))


def test_nsga2_serves_one_budget(network):
    search = search_of(network, "nsga2")
    with pytest.raises(ConfigError, match="one budget"):
        Search(search.codec, search.costs, [search.bounds[0]] * 2, search.config, Rng(0)).run(gain(network))


def url_of(kind, folder):
    return f"sqlite:///{folder / 's.db'}" if kind == "sqlite" else f"journal:{folder / 's.db'}"


@pytest.mark.parametrize("kind", ["sqlite", "journal"])
@pytest.mark.parametrize("loss", ["folder renamed", "file deleted", "file replaced"])
def test_a_storage_that_goes_away_is_one_clear_error(network, tmp_path, monkeypatch, kind, loss):
    folder, calls = tmp_path / "gone", 0
    folder.mkdir()

    def score(widths):
        nonlocal calls
        calls += 1
        if calls == 5 and loss == "folder renamed":
            folder.rename(tmp_path / "elsewhere")
        elif calls == 5:
            (folder / "s.db").unlink()
            if loss == "file replaced":
                (folder / "s.db").touch()
        return gain(network)(widths)

    with pytest.raises(SearchError, match=r"cannot be used.*run the same command"):
        search_of(network, storage=url_of(kind, folder)).run(score)
    assert calls == 5
    if loss == "file deleted":
        assert not (folder / "s.db").exists()  # a new one would lack what was scored
    if loss == "folder renamed":
        monkeypatch.setattr(liveness, "PATIENCE_S", 1.0)  # this process lives on, but scores for that search no more
        back = url_of(kind, tmp_path / "elsewhere")
        goes_on = search_of(network, storage=back).run(gain(network))
        assert sequence(goes_on) == sequence(search_of(network).run(gain(network)))


@pytest.mark.parametrize("kind", ["memory", "sqlite", "journal"])
def test_what_the_score_function_raises_comes_out_as_it_is(network, tmp_path, kind):
    storage = None if kind == "memory" else url_of(kind, tmp_path)
    for error in (
        OSError("mine"),
        KeyError("mine"),
        ValueError("mine"),
        optuna.exceptions.StorageInternalError("mine"),
    ):

        def failing(widths, error=error):
            raise error

        with pytest.raises(type(error)) as caught:
            search_of(network, storage=storage).run(failing)
        assert caught.value is error


def test_a_score_that_is_no_number_ends_the_search(network):
    with pytest.raises(SearchError, match="is nan: what scores it diverged"):
        search_of(network).run(lambda widths: {"score": float("nan")})


def test_what_the_score_function_raises_matters_more_than_a_lost_storage(network, tmp_path):
    def failing(widths):
        (tmp_path / "s.db").unlink()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        search_of(network, storage=url_of("journal", tmp_path)).run(failing)


@pytest.mark.parametrize("kind", ["sqlite", "journal"])
@pytest.mark.parametrize("raises", [False, True])
def test_a_worker_that_was_taken_for_dead_goes_on(network, tmp_path, kind, raises):
    """Another host fails its trial while it scores; its slot is scored again, and it follows the sequence."""
    storage, calls = url_of(kind, tmp_path), 0

    def score(widths):
        nonlocal calls
        calls += 1
        if calls == 5:
            study = optuna.load_study(study_name="search", storage=storage_of(storage))
            study.tell(study.trials[-1].number, state=optuna.trial.TrialState.FAIL)
            if raises:
                raise KeyboardInterrupt
        return gain(network)(widths)

    if raises:
        with pytest.raises(KeyboardInterrupt):
            search_of(network, storage=storage).run(score)
    found = search_of(network, storage=storage).run(score)
    assert sequence(found) == sequence(search_of(network).run(gain(network)))
    assert calls == len(found) + 1


def test_sqlite_waits_for_no_disk_and_leaves_one_file(network, tmp_path):
    search_of(network, storage=url_of("sqlite", tmp_path)).run(gain(network))
    assert [f.name for f in tmp_path.iterdir()] == ["s.db"]
    with closing(sqlite3.connect(tmp_path / "s.db")) as database:
        assert database.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_a_storage_that_cannot_be_opened(network, tmp_path):
    (tmp_path / "other.json").write_text("{}\n")
    for storage in ("nonsense", f"journal:{tmp_path}/missing/s.log", f"journal:{tmp_path}/other.json"):
        with pytest.raises(SearchError, match=r"cannot be opened: .*Give sqlite:///FILE"):
            search_of(network, storage=storage).run(gain(network))


def test_the_same_seed_finds_the_same_in_another_process(network):
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        there = pool.apply(_found_elsewhere)
    assert json.loads(there) == json.loads(json.dumps(sequence(search_of(network).run(gain(network)))))


def _found_elsewhere():
    found = trace(create("zoo:mobilenet_v1", num_classes=10, width=0.25), torch.zeros(2, 3, 32, 32))
    return json.dumps(sequence(search_of(found).run(gain(found))))


# ---------------------------------------------------------------------------------------------------- screening


def test_what_is_screened_out_is_not_scored_and_wins_nothing(network):
    score = gain(network)
    whole = []

    def counted(widths):
        whole.append(tuple(widths.tolist()))
        return score(widths)

    # screening overrates all: were its scores compared with the others, screened-out structures would win
    config = EvolutionConfig(population=10, generations=8, parents=2)
    found = search_of(network, config=config, screen=lambda w: 10 + score(w)["score"]).run(counted)
    assert [c.widths for c in found if c.whole] == whole
    size, place = config.population, 2 * config.parents
    assert 0.25 <= sum(c.whole for c in found[size:]) / len(found[size:]) <= 0.9
    for batch in range(config.generations):
        reached = sorted((c.found["screened"] for c in found[: batch * size]), reverse=True)
        bar = reached[place - 1] if reached else -np.inf
        for candidate in found[batch * size : (batch + 1) * size]:
            assert candidate.whole == (candidate.found["screened"] >= bar)
    bounds = {"macs": 0.3 * network.cost().macs}
    best = best_within(found, network.cost_model(), bounds)
    assert best.whole and best.score == max(c.score for c in found if c.whole)
    assert all(found[i].whole for i in front(found, [c.load for c in found]))


def test_a_screened_search_that_was_interrupted_ends_the_same(network, tmp_path):
    score, calls = gain(network), []

    def screen(widths):
        calls.append(widths)
        if len(calls) == 17:
            raise KeyboardInterrupt
        return score(widths)["score"]

    storage = f"sqlite:///{tmp_path / 's.db'}"
    with pytest.raises(KeyboardInterrupt):
        search_of(network, storage=storage, screen=screen).run(score)
    resumed = search_of(network, storage=storage, screen=screen).run(score)
    straight = search_of(network, screen=lambda w: score(w)["score"]).run(score)
    assert [(c.widths, c.found) for c in resumed] == [(c.widths, c.found) for c in straight]


@pytest.mark.parametrize("searcher", ["greedy", "nsga2"])
def test_searchers_that_compare_all_do_not_screen(network, searcher):
    def screen(widths):
        raise AssertionError("screened")

    assert all(c.whole for c in search_of(network, searcher, screen=screen).run(gain(network)))
