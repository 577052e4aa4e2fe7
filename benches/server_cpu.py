#!/usr/bin/env python3
"""CPU time per request of the echo server, io_uring against epoll, as the README's table shows it.

    cargo build --release --examples && python3 benches/server_cpu.py [ROUNDS]

Both servers are up at once, pinned to core 0; the load, pinned to core 1 and always on the epoll backend, goes round them in
short slices. Reported are medians over the rounds: microseconds of CPU (user and system, from /proc/PID/stat) per request,
and the ratio to the epoll server within the same round.
"""
import json
import os
import statistics
import subprocess
import sys
import time

EXAMPLES = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "target", "release", "examples")
BACKENDS = ["uring", "epoll"]
WORKLOADS = {
    "64 B, 50 connections": ["--conns", "50"],
    "64 B, 500 connections": ["--conns", "500"],
    "64 B, 5,000 connections": ["--conns", "5000"],
    "1 KiB, 50 connections, 16 in flight": ["--conns", "50", "--size", "1024", "--depth", "16"],
    "16 KiB, 50 connections": ["--conns", "50", "--size", "16384"],
    "connect, 64 B, close; 64 at once": ["--conns", "64", "--mode", "connect"],
}


def start(backend):
    command = ["taskset", "-c", "0", os.path.join(EXAMPLES, "echo_server"), "--addr", "127.0.0.1:0", "--backend", backend]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    banner = server.stdout.readline().split()
    if len(banner) != 5:
        sys.exit(f"no server on {backend}: run `{' '.join(command)}` to see why")
    return server, banner[2]


def cpu_us(pid):
    with open(f"/proc/{pid}/stat") as stat:
        fields = stat.read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) * 1e6 / os.sysconf("SC_CLK_TCK")


def measure(server, addr, options):
    command = ["taskset", "-c", "1", os.path.join(EXAMPLES, "load"), "--addr", addr, "--backend", "epoll", "--seconds", "0.8", "--json"]
    before = cpu_us(server.pid)
    result = json.loads(subprocess.run(command + options, stdout=subprocess.PIPE, check=True).stdout)
    time.sleep(0.05)
    return (cpu_us(server.pid) - before) / result["requests"], result["requests_per_s"]


def main():
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 9
    servers = {backend: start(backend) for backend in BACKENDS}
    print("| workload | io_uring, us CPU/request | epoll | ratio (least to most) |\n|---|---|---|---|")
    try:
        for name, options in WORKLOADS.items():
            seen = {backend: [] for backend in BACKENDS}
            for done in range(rounds):
                print(f"{name}: round {done + 1} of {rounds}", end="\r", file=sys.stderr)
                for backend in BACKENDS:
                    seen[backend].append(measure(*servers[backend], options)[0])
            median = {backend: statistics.median(seen[backend]) for backend in BACKENDS}
            ratios = [a / b for a, b in zip(seen["uring"], seen["epoll"])]
            spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
            print(f"| {name} | {median['uring']:.2f} | {median['epoll']:.2f} | {spread} |", flush=True)
    finally:
        for server, _ in servers.values():
            server.terminate()
            server.wait()


if __name__ == "__main__":
    main()
