"""The Slurm script, run dry: `srun`, `scontrol` and `python` are stand-ins that note what they were asked."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "cluster" / "slurm.sbatch"
NODES = ["gpu01", "gpu02", "gpu03"]
FAKES = {
    "scontrol": """
[ "$1" = show ] && printf '%s\\n' {nodes}
true
""",
    # Runs the command here, once a step, however many tasks it asks for.
    "srun": """
while [[ $1 == --* ]]; do shift; done
exec "$@"
""",
    "hostname": "echo 127.0.0.1 fe80::1 10.0.0.7\n",
    "python": """
case "$*" in
    -c*) exec {python} "$@" ;;
    *status*) grep -q ^mode "$LOG"; exit ;;
    *" start "*)
        trap 'echo "ended $*" >>"$LOG"; exit 0' TERM
        echo "mode $RAY_AUTH_MODE $(stat -c %a "$RAY_AUTH_TOKEN_PATH") $(wc -c <"$RAY_AUTH_TOKEN_PATH")" >>"$LOG"
        while :; do sleep 0.05; done ;;
    *with_nodes*)
        trap 'echo "sweep stopped" >>"$LOG"; exit 130' TERM
        while [ "$(grep -c ^mode "$LOG")" -lt "$STEPS" ]; do sleep 0.05; done
        echo "sweep runs" >>"$LOG"
        for ((i = 0; i < ${{SECONDS_OF_SWEEP:-0}} * 20; i++)); do sleep 0.05; done
        exit "${{CODE:-0}}" ;;
esac
""",
}


@pytest.fixture
def job(tmp_path):
    """Starts the script as a job of `count` nodes; gives the process, and what is noted."""
    tools, log, home = tmp_path / "bin", tmp_path / "log", tmp_path / "home"
    tools.mkdir()
    home.mkdir()
    log.touch()
    for name, body in FAKES.items():
        note = f'echo "{name} $*" >>"$LOG"\n'
        (tools / name).write_text("#!/bin/bash\n" + note + body.format(nodes=" ".join(NODES), python=sys.executable))
        (tools / name).chmod(0o755)
    begun = []

    def start(count=3, **changes):
        environment = {
            "PATH": f"{tools}:{os.environ['PATH']}",
            "HOME": str(home),
            "LOG": str(log),
            "PYTHON": str(tools / "python"),
            "SLURM_SUBMIT_DIR": str(tmp_path),
            "SLURM_JOB_ID": "91234",
            "SLURM_JOB_NODELIST": "gpu[01-03]",
            "SLURM_JOB_NUM_NODES": str(count),
            "SLURM_CPUS_PER_TASK": "32",
            "SLURM_GPUS_ON_NODE": "4",
            "STEPS": str(min(count, 2)),
        }
        words = ["bash", SCRIPT, "sweeps/cam_geometry.py", "--seeds", "10", "--name", "two words"]
        begun.append(subprocess.Popen(words, env=environment | changes, stderr=subprocess.PIPE, text=True))
        return begun[-1]

    yield start, log, home
    for process in begun:
        process.kill()
        process.communicate()


def noted(log, kind):
    return [line for line in log.read_text().splitlines() if line.startswith(kind)]


def until(log, text):
    deadline = time.monotonic() + 20
    while text not in log.read_text():
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.02)


def test_head_and_workers_start_the_sweep_runs_and_all_is_ended(job):
    start, log, home = job
    process = start()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    head, workers = (line for line in noted(log, "srun") if " start " in line)
    assert "--nodelist=gpu01" in head and "--nodes=1 " in head and "--head" in head
    assert "--nodes=2 --ntasks=2 --exclude=gpu01" in workers and "--head" not in workers
    assert "--include-dashboard=false" in head
    for line in (head, workers):
        assert "--num-cpus=32" in line and "--num-gpus=4" in line and "--temp-dir=/tmp/ray-91234" in line
        assert "umask 077" in line and "--block" in line and "--cpus-per-task=32" in line
    (sweep,) = (line for line in noted(log, "python") if "with_nodes" in line)
    port = re.search(r"--port=(\d+)", head)[1]
    assert f"--address=10.0.0.7:{port}" in workers
    assert f"--address 10.0.0.7:{port} --nodes 3 " in sweep
    assert sweep.endswith(f"sweeps/cam_geometry.py --address 10.0.0.7:{port} --seeds 10 --name two words")
    assert len(noted(log, "ended")) == 2 and "--head" in noted(log, "ended")[1]  # workers first
    assert noted(log, "mode") == ["mode token 600 64"] * 2
    assert not list((home / ".ray").iterdir())
    assert "--nodes=3 --ntasks=3 rm -rf /tmp/ray-91234" in noted(log, "srun")[-1]


def test_ports_are_apart_below_the_ephemeral_ones_and_other_jobs_have_others(job):
    start, log, _ = job
    ranges = []
    for number in ("91234", "91235"):
        log.write_text("")
        start(SLURM_JOB_ID=number).communicate(timeout=60)
        head = next(line for line in noted(log, "srun") if "--head" in line)
        ports = [int(port) for port in re.findall(r"-port=(\d+)", head)]
        assert len(ports) == len(set(ports)) == 10
        low, high = (int(re.search(rf"--{end}-worker-port=(\d+)", head)[1]) for end in ("min", "max"))
        assert not [port for port in ports if low < port < high]
        ranges.append((min(ports), max(ports)))
        assert min(ports) >= 10000 and max(ports) < 32768
    assert ranges[0][1] < ranges[1][0] or ranges[1][1] < ranges[0][0]


def test_one_node_has_no_workers_and_the_sweeps_exit_code_is_the_jobs(job):
    start, log, _ = job
    process = start(count=1, CODE="2")
    process.communicate(timeout=60)
    assert process.returncode == 2
    assert sum(" start " in line for line in noted(log, "srun")) == 1 and len(noted(log, "ended")) == 1


def test_at_the_time_limit_the_sweep_is_stopped_and_the_job_queued_again(job):
    start, log, home = job
    process = start(SECONDS_OF_SWEEP="60")
    until(log, "sweep runs")
    process.send_signal(signal.SIGUSR1)
    process.communicate(timeout=30)
    assert process.returncode == 0
    lines = log.read_text().splitlines()
    assert lines[-1] == "scontrol requeue 91234" and "sweep stopped" in lines
    assert len(noted(log, "ended")) == 2 and not list((home / ".ray").iterdir())


def test_a_cancelled_job_leaves_nothing(job):
    start, log, home = job
    process = start(SECONDS_OF_SWEEP="60")
    until(log, "sweep runs")
    process.terminate()
    process.communicate(timeout=30)
    assert process.returncode == 143 and not noted(log, "scontrol requeue")
    assert "sweep stopped" in log.read_text() and len(noted(log, "ended")) == 2
    assert not list((home / ".ray").iterdir())
