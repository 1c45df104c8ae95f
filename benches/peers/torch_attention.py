"""Times torch's causal scaled_dot_product_attention in f32 on the CPU, for `cargo bench --bench attention`.

    python torch_attention.py [--threads 2]

For each line `B H T D` of standard input it answers with a line of two numbers: milliseconds of forward without a graph, and of
forward and backward from ones. Each is the median of 7 runs after 2 uncounted ones.
"""
import argparse
import statistics
import sys
import time

import torch
import torch.nn.functional as F


def median_ms(work):
    work(), work()
    times = []
    for _ in range(7):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times) * 1e3


def measure(b, h, t, d):
    q, k, v = (torch.randn(b, h, t, d, requires_grad=True) for _ in range(3))
    dout = torch.ones(b, h, t, d)

    @torch.no_grad()
    def forward():
        F.scaled_dot_product_attention(q, k, v, is_causal=True)

    def forward_and_backward():
        q.grad = k.grad = v.grad = None  # fresh gradients, not added to those of the previous run
        F.scaled_dot_product_attention(q, k, v, is_causal=True).backward(dout)

    return median_ms(forward), median_ms(forward_and_backward)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--threads", type=int, default=2)
    torch.set_num_threads(p.parse_args().threads)
    for line in sys.stdin:
        print(*measure(*map(int, line.split())), flush=True)


if __name__ == "__main__":
    main()
