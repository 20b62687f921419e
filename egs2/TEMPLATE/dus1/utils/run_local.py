#!/usr/bin/env python3
"""Run jobs on this machine, with the command line of Kaldi's run.pl."""

import contextlib
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

USAGE = """usage: run_local.py [options] [JOB=1:n] log command [argument ...]

Runs the command, or n of them, and writes what they print to the log. JOB (or any other
name) becomes the job's number in the log's name and in the arguments. If a job fails,
the end of its log is shown and the exit code is 1.

options:
  --max-jobs-run N   at most N jobs at once (default: what the cores or, with --gpu,
                     the GPUs allow)
  --num-threads N    each job takes N cores (default: 1)
  --gpu N            each job takes N GPUs and sees no others (default: 0)
  --mem M, --name X, --time T, --config C
                     for job schedulers; no meaning here
"""
OPTIONS = {"max_jobs_run", "num_threads", "gpu", "mem", "name", "time", "config"}
TAIL_LINES = 20
PROGRESS_SECONDS = 10
KILL_SECONDS = 25  # a training saves its state; slurm kills after 30


def parse(arguments):
    """Split a command line into options, the array (name, first, last), log, command.

    Raises:
        ValueError: The command line is not as `USAGE` says.
    """
    options = {"num_threads": "1", "gpu": "0"}
    rest = list(arguments)
    while rest and rest[0].startswith("-"):
        name = rest.pop(0)
        key = name.lstrip("-").replace("-", "_")
        if key not in OPTIONS or not rest:
            what = "needs a value" if key in OPTIONS else "is unknown"
            raise ValueError(f"option {name} {what}")
        options[key] = rest.pop(0)
    for key, least in (("max_jobs_run", 1), ("num_threads", 1), ("gpu", 0)):
        value = options.get(key, "1")
        if not value.isdecimal() or int(value) < least:
            raise ValueError(f"{key}: expected a number from {least} on, not {value!r}")

    array = None
    match = re.fullmatch(r"([A-Za-z_]\w*)=(\d+)(?::(\d+))?", rest[0]) if rest else None
    if match:
        rest.pop(0)
        name, first, last = match.groups()
        array = (name, int(first), int(last or first))
    if len(rest) < 2:
        raise ValueError("expected a log and a command")
    log, *command = rest
    if array is not None:
        name, first, last = array
        if last < first:
            raise ValueError(f"{name}={first}:{last} is an empty range")
        if last > first and name not in log:
            raise ValueError(f"the jobs would share one log: {log} has no {name} in it")
    return options, array, log, command


def visible_gpus():
    """List the GPUs of this machine, as CUDA_VISIBLE_DEVICES names them."""
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        names = os.environ["CUDA_VISIBLE_DEVICES"].split(",")
        return [name for name in names if name not in ("", "-1")]
    try:
        answer = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True)
    except OSError:
        return []
    return [str(i) for i, _ in enumerate(re.findall("^GPU ", answer.stdout, re.M))]


class Job:
    """One running command and its log."""

    def __init__(self, log, command, gpus):
        self.log, self.gpus, self.started = Path(log), gpus, time.time()
        self.log.parent.mkdir(parents=True, exist_ok=True)
        # "a": what the command writes meanwhile is not written over.
        self.log.unlink(missing_ok=True)
        self.file = self.log.open("ab")
        self.write(f"# {shlex.join(command)}\n# Started at {time.ctime()}\n#\n")
        environment = dict(os.environ)
        if gpus:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
        self.process = None
        try:
            # A session of its own, so that the job's own children can be ended with it.
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=self.file,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )
        except OSError as error:
            self.write(f"{command[0]}: {error.strerror}\n")

    def write(self, text):
        """Add a line of our own to the log."""
        self.file.write(text.encode())
        self.file.flush()

    def ended(self):
        """Return whether the command has ended; complete its log if so."""
        if self.file.closed:
            return True
        self.code = 127 if self.process is None else self.process.poll()
        if self.code is None:
            return False
        elapsed = round(time.time() - self.started)
        self.write(
            f"# Ended (code {self.code}) at {time.ctime()}, "
            f"elapsed time {elapsed} seconds\n"
        )
        self.file.close()
        return True

    def send(self, number):
        """Send a signal to the command and to its children."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, number)

    def tail(self):
        """Return the last lines of the log."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        return "\n".join(lines[-TAIL_LINES:])


def report(text):
    """Tell the user something."""
    print(f"run_local.py: {text}", file=sys.stderr, flush=True)


def kill(jobs):
    """End jobs and their children: ask, wait a little, insist."""
    for job in jobs:
        job.send(signal.SIGTERM)
    deadline = time.time() + KILL_SECONDS
    while time.time() < deadline and not all(job.ended() for job in jobs):
        time.sleep(0.05)
    for job in jobs:
        job.send(signal.SIGKILL)


def jobs_at_once(options, gpus):
    """Return the number of jobs that this machine holds or was asked to run."""
    if gpus:
        capacity = len(gpus) // int(options["gpu"])
        return min(int(options.get("max_jobs_run", capacity)), capacity)
    cores = 1 if int(options["gpu"]) else len(os.sched_getaffinity(0))
    capacity = max(cores // int(options["num_threads"]), 1)
    return int(options.get("max_jobs_run", capacity))


def run(options, array, log, command):
    """Run all jobs and return those that failed.

    Raises:
        ValueError: A job wants more GPUs than there are.
        SystemExit: SIGTERM, SIGINT or SIGHUP came; all jobs have been ended.
    """
    gpus_each = int(options["gpu"])
    gpus = visible_gpus() if gpus_each else []
    if gpus and gpus_each > len(gpus):
        raise ValueError(f"--gpu {gpus_each}: this machine shows only {len(gpus)}")
    limit = jobs_at_once(options, gpus)

    # Only noted here and acted on between two steps: no job can slip through.
    signals = []
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, frame: signals.append(number))

    name, first, last = array or ("", 1, 1)
    waiting, running, ended = list(range(first, last + 1)), [], []
    total = len(waiting)
    started = reported = time.time()
    try:
        while (waiting or running) and not signals:
            while waiting and len(running) < limit:
                number = str(waiting.pop(0))
                filled = [log, *command]
                if name:
                    filled = [text.replace(name, number) for text in filled]
                running.append(Job(filled[0], filled[1:], gpus[:gpus_each]))
                del gpus[:gpus_each]
            for job in [job for job in running if job.ended()]:
                running.remove(job)
                ended.append(job)
                gpus += job.gpus
            if ended and running and time.time() - reported > PROGRESS_SECONDS:
                reported = time.time()
                left = (reported - started) / len(ended) * (total - len(ended))
                report(f"{log}: {len(ended)} of {total} jobs, about {left:.0f} s left")
            time.sleep(0.02)
    finally:
        kill(running)
    if signals:
        report(f"ended by {signal.Signals(signals[0]).name}")
        sys.exit(128 + signals[0])
    return [job for job in ended if job.code != 0]


def main():
    """Run what the command line says."""
    if sys.argv[1:2] in (["--help"], ["-h"]):
        print(USAGE, end="")
        return 0
    try:
        options, array, log, command = parse(sys.argv[1:])
        failed = run(options, array, log, command)
    except (ValueError, OSError) as error:
        report(f"error: {error}")
        return 1
    for job in failed:
        report(f"the end of {job.log}:")
        print(job.tail(), file=sys.stderr)
    if failed:
        first, last = array[1:] if array else (1, 1)
        logs = " ".join(str(job.log) for job in failed)
        report(f"error: {len(failed)} of {last - first + 1} jobs failed: {logs}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
