"""Tokens a second of nanoGPT's sampling loop in torch on the CPU, without a cache: the peer of benches/generation.rs.

    python nanogpt_sample.py [--prompt 1] [--tokens 500] [--threads 2] ...

Random weights of the size of nanoGPT's CPU recipe. Each new token reads the last `--context` tokens again, takes the logits of
the last position, keeps the `--top-k` highest, and draws one.
"""
import argparse
import statistics
import time

import torch
import torch.nn.functional as F

from nanogpt_cpu import Gpt


def arguments():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    integers = dict(prompt=1, tokens=500, rounds=5, layers=4, heads=4, dim=128, context=64, vocab=65, top_k=200, threads=2, seed=1)
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
def generate(model, ids, a):
    for _ in range(a.tokens):
        logits = next_logits(model, ids[:, -a.context :])
        least = torch.topk(logits, min(a.top_k, a.vocab)).values[:, -1:]
        probabilities = F.softmax(logits.masked_fill(logits < least, float("-inf")), dim=-1)
        ids = torch.cat([ids, torch.multinomial(probabilities, 1)], dim=1)
    return ids


def main():
    a = arguments()
    torch.set_num_threads(a.threads)
    torch.manual_seed(a.seed)
    model = Gpt(a.vocab, a.layers, a.heads, a.dim, a.context).eval()
    prompt = torch.randint(a.vocab, (1, a.prompt))
    rates = []
    for _ in range(a.rounds + 1):
        begun = time.perf_counter()
        generate(model, prompt, a)
        rates.append(a.tokens / (time.perf_counter() - begun))
    # the first round warms up
    rate = statistics.median(rates[1:])
    print(
        f"torch {torch.__version__}  threads {a.threads}  L{a.layers} H{a.heads} C{a.dim} T{a.context} V{a.vocab}  "
        f"prompt {a.prompt}, {a.tokens} tokens: {rate:.0f} tokens/s, {1e6 / rate:.0f} us a token"
    )


if __name__ == "__main__":
    main()
