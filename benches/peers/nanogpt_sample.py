"""Times nanoGPT's sampling loop, which has no cache, in torch on the CPU, for `cargo bench --bench generation`.

    python nanogpt_sample.py [--threads 2] ...

A model of the size of nanoGPT's CPU recipe with random weights. Each new token reads the last `--context` tokens again, takes the
logits of the last position, keeps the `--top-k` highest, and draws one. For each line of standard input, a number of tokens, it
generates as many after a prompt of one, twice, and answers with the microseconds per token of the second time.
"""
import argparse
import sys
import time

import torch
import torch.nn.functional as F

from nanogpt_cpu import Gpt


def arguments():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    integers = dict(layers=4, heads=4, dim=128, context=64, vocab=65, top_k=200, threads=2, seed=1)
    for name, default in integers.items():
        p.add_argument("--" + name.replace("_", "-"), type=int, default=default)
    return p.parse_args()


def next_logits(model, ids):
    """The logits (B, V) after the last of the ids (B, T)."""
    xs = model.tokens(ids) + model.positions.weight[: ids.shape[1]]
    for block in model.blocks:
        xs = block(xs)
    return F.linear(model.norm(xs[:, -1]), model.tokens.weight)


@torch.no_grad()
def generate(model, tokens, a):
    ids = torch.ones(1, 1, dtype=torch.long)
    for _ in range(tokens):
        logits = next_logits(model, ids[:, -a.context :])
        least = torch.topk(logits, min(a.top_k, a.vocab)).values[:, -1:]
        probabilities = F.softmax(logits.masked_fill(logits < least, float("-inf")), dim=-1)
        ids = torch.cat([ids, torch.multinomial(probabilities, 1)], dim=1)


def main():
    a = arguments()
    torch.set_num_threads(a.threads)
    torch.manual_seed(a.seed)
    model = Gpt(a.vocab, a.layers, a.heads, a.dim, a.context).eval()
    for line in sys.stdin:
        tokens = int(line.split()[-1])
        generate(model, tokens, a)
        begun = time.perf_counter()
        generate(model, tokens, a)
        print((time.perf_counter() - begun) / tokens * 1e6, flush=True)


if __name__ == "__main__":
    main()
