"""Workers that die are noticed: zombies, reused numbers, machines whose processes cannot be seen; at any stage."""

import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

import metaprune.search.liveness as liveness
from metaprune.methods.pruningnet.cli import Search as SearchVerb
from metaprune.runs.workers import workers
from metaprune.search.config import ENVIRONMENT
from metaprune.search.liveness import Watch, is_gone, worker_name
from metaprune.search.url import shown_url

TESTS = Path(__file__).parents[1]
sys.path.insert(0, str(TESTS / "helpers"))
from search_worker import STAGES, score, small_search  # noqa: E402

PASSWORD = "S3CRETWORD"


def sequence(candidates):
    return [(c.slot, c.widths, round(c.score, 12)) for c in candidates]


def started(storage, stage, known="here"):
    return subprocess.Popen([sys.executable, str(TESTS / "helpers/search_worker.py"), storage, stage, known])


def wait_for_zombie(process):
    """Without `wait`, which would reap it."""
    stat = Path(f"/proc/{process.pid}/stat")
    while stat.read_text().rpartition(")")[2].split()[0] != "Z":
        time.sleep(0.05)


# ---------------------------------------------------------------------------------------------------- who lives


class Clock:
    def __init__(self, monkeypatch):
        self.now = 1000.0
        monkeypatch.setattr(liveness.time, "monotonic", lambda: self.now)


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


def running(name, **attributes):
    study = optuna.create_study(direction="maximize")
    trial = study.ask()
    if name is not None:
        trial.set_user_attr(liveness.WORKER, name)
    for key, value in attributes.items():
        trial.set_user_attr(key, value)
    return study, trial


def is_failed(study):
    return study.trials[0].state == TrialState.FAIL


def test_a_zombie_is_gone_and_a_reused_number_is_another_process():
    process = subprocess.Popen(["sleep", "600"])
    host, _, _, machine, word = worker_name().split(":")
    name = f"{host}:{process.pid}:{liveness._start(process.pid)}:{machine}:{word}"
    assert not is_gone(name)
    process.kill()
    wait_for_zombie(process)
    os.kill(process.pid, 0)  # a zombie takes signals
    assert is_gone(name)
    process.wait()
    assert not is_gone(worker_name())
    assert is_gone(f"{host}:{os.getpid()}:1:{machine}:{word}")
    assert is_gone(f"{host}:1:1:{machine}:{word}")


@pytest.mark.parametrize(
    "name", [None, "other:17:1:another machine:x", f"{socket.gethostname()}:1::x", ["host:1:x", 0.0]]
)
def test_whoever_does_not_beat_is_dead_after_a_while(clock, name):
    """Also a holder that a version before this one left, and one that was killed before it said its name."""
    study, _ = running(name)
    watch = Watch()
    watch.fail_dead(study, study.trials, ())
    clock.now += liveness.PATIENCE_S
    watch.fail_dead(study, study.trials, ())
    assert not is_failed(study)
    clock.now += 1
    assert watch.fail_dead(study, study.trials, ())
    assert is_failed(study)


def test_whoever_beats_lives_however_long_it_takes(clock):
    study, trial = running("other:17:1:another machine:x")
    watch = Watch()
    for beat in range(200):
        trial.set_user_attr(liveness.BEAT, beat)
        assert not watch.fail_dead(study, study.trials, ())
        clock.now += liveness.PATIENCE_S
    assert not watch.fail_dead(study, study.trials, (trial.number,))  # its own


def test_a_trial_beats_from_ask_to_tell(monkeypatch, tmp_path):
    monkeypatch.setattr(liveness, "BEAT_S", 0.01)
    storage = f"sqlite:///{tmp_path / 's.db'}"
    beats = []

    def slow(widths):
        study = optuna.load_study(study_name="search", storage=storage)
        while not beats and (trial := study.get_trials(states=[TrialState.RUNNING])[0]):
            beats.extend([trial.user_attrs[liveness.BEAT]] if liveness.BEAT in trial.user_attrs else [])
            time.sleep(0.01)
        return score(widths)

    small_search(storage).run(slow)
    assert beats[0] >= 1


def test_after_a_minute_a_line_says_who_is_waited_for(clock, caplog):
    study, trial = running("calc7:4711:1:another machine:x")
    watch = Watch()
    with caplog.at_level(logging.INFO, "metaprune"):
        for _ in range(3):
            watch.fail_dead(study, study.trials, ())
            watch.say_waiting(study.trials)
            assert not caplog.records
            clock.now += 25
            trial.set_user_attr(liveness.BEAT, clock.now)
        watch.fail_dead(study, study.trials, ())
        watch.say_waiting(study.trials)
    assert "waiting for 75 s for process 4711 on calc7 (structure 0, silent for 0 s)" in caplog.text


# ---------------------------------------------------------------------------------------------------- killed


@pytest.mark.parametrize("kind", ["journal", pytest.param("sqlite", marks=pytest.mark.thorough)])
@pytest.mark.parametrize("stage", STAGES)
def test_a_worker_killed_at_any_stage_leaves_no_hole(tmp_path, monkeypatch, stage, kind):
    """It stays a zombie of this process, as in a container whose first process does not reap."""
    storage = f"sqlite:///{tmp_path / 's.db'}" if kind == "sqlite" else f"journal:{tmp_path / 's.log'}"
    known = "elsewhere" if kind == "journal" else "here"
    if known == "elsewhere":
        monkeypatch.setattr(liveness, "PATIENCE_S", 1.0)
    victim = started(storage, stage, known)
    wait_for_zombie(victim)
    if known == "here":
        monkeypatch.setattr(liveness, "PATIENCE_S", 0.5 if stage == "unnamed" else 1e9)
    found = small_search(storage).run(score)
    assert sequence(found) == sequence(small_search().run(score))
    assert victim.wait() == -signal.SIGKILL


# ---------------------------------------------------------------------------------------------------- their processes


def test_workers_get_the_url_in_their_environment_and_never_as_an_argument(tmp_path):
    url = f"postgresql+psycopg://u:{PASSWORD}@h/db"
    for verb in (
        SearchVerb(Path("run"), budget="macs=50%", storage=url),
        SearchVerb(Path("run"), set=(f"method.options.storage={url}", "seed=1")),
    ):
        command = verb._worker_command()
        assert PASSWORD not in " ".join(command)
        assert verb._storage() == url
    told = tmp_path / "told"
    code = f"import os, pathlib; pathlib.Path({str(told)!r}).write_text(os.environ[{ENVIRONMENT!r}])"
    with workers([sys.executable, "-c", code], 1, url):
        pass
    assert told.read_text() == url


def test_a_dead_worker_is_reaped_and_said_while_the_search_goes_on(caplog):
    with workers([sys.executable, "-c", "import time; time.sleep(600)"], 2, None) as helpers:
        helpers[0].kill()
        while Path(f"/proc/{helpers[0].pid}").exists():  # a zombie would stay
            time.sleep(0.05)
        while "was ended by SIGKILL" not in caplog.text:
            time.sleep(0.05)
        helpers[1].kill()
    assert [helper.returncode for helper in helpers] == [-signal.SIGKILL] * 2


MAIN = """
import sys, time
from metaprune.runs.workers import sigterm_exits, workers
with sigterm_exits(), workers([sys.executable, "-c", "import time; time.sleep(600)"], 2, None) as helpers:
    print(*(h.pid for h in helpers), flush=True)
    time.sleep(600)
"""


def test_sigterm_to_the_main_process_ends_its_workers():
    main = subprocess.Popen([sys.executable, "-c", MAIN], stdout=subprocess.PIPE, text=True)
    helpers = main.stdout.readline().split()
    main.terminate()
    assert main.wait(timeout=120) == 128 + signal.SIGTERM
    assert not [pid for pid in helpers if Path(f"/proc/{pid}").exists()]


# ---------------------------------------------------------------------------------------------------- PostgreSQL


def _binaries():
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    return folders[-1] if folders else None


@pytest.fixture(scope="module")
def server():
    """The URL of a PostgreSQL of its own, which wants a password; gone after the tests."""
    pytest.importorskip("psycopg", reason="no driver: pip install 'psycopg[binary]'")
    binaries = _binaries()
    if binaries is None:
        pytest.skip("no PostgreSQL: apt-get install postgresql")
    folder = Path(tempfile.mkdtemp(prefix="metaprune-pg-"))
    user = {"user": "postgres", "group": "postgres", "extra_groups": []} if os.getuid() == 0 else {}
    (folder / "password").write_text(PASSWORD)
    if user:  # initdb refuses to be root
        for path in (folder, folder / "password"):
            shutil.chown(path, "postgres", "postgres")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    data = folder / "data"
    initdb = [
        binaries / "initdb",
        "-D",
        data,
        "-U",
        "me",
        "-A",
        "scram-sha-256",
        f"--pwfile={folder / 'password'}",
        "-N",
    ]
    subprocess.run(list(map(str, initdb)), check=True, capture_output=True, cwd=folder, **user)
    options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={folder} -c fsync=off"
    control = [str(binaries / "pg_ctl"), "-D", str(data), "-l", str(folder / "log")]
    subprocess.run([*control, "-o", options, "-w", "start"], check=True, capture_output=True, cwd=folder, **user)
    yield f"postgresql+psycopg://me:{PASSWORD}@127.0.0.1:{port}/postgres"
    subprocess.run([*control, "-m", "immediate", "stop"], check=False, capture_output=True, cwd=folder, **user)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.timeout(600)
def test_a_real_postgresql_with_a_killed_worker_and_a_live_one(server, monkeypatch, caplog):
    victim = started(server, "scoring")
    wait_for_zombie(victim)
    other = started(server, "none")
    with caplog.at_level(logging.INFO, "metaprune"):
        found = small_search(server).run(score)
    assert other.wait() == 0
    assert victim.wait() == -signal.SIGKILL
    assert sequence(found) == sequence(small_search().run(score))
    assert PASSWORD not in caplog.text + shown_url(server)
    found_again = small_search(server).run(lambda widths: pytest.fail("finished already"))
    assert sequence(found_again) == sequence(found)
