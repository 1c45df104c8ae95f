"""A GPT of nanoGPT's shape, trained with torch on the CPU at character level: the loss and the times to compare `attn train` with.

    python nanogpt_cpu.py --text FILE [--seed N] [--steps 2000] [--every 250] [--compile] ...
    python nanogpt_cpu.py --serve [--compile] ...

The defaults are nanoGPT's CPU recipe. The validation text is the last tenth of the characters, evaluated as a whole in
non-overlapping windows, so the loss has no sampling noise. Seconds count from the start of the process and include evaluation.

With --serve it only times steps, for `cargo bench --bench training_step`: for each line of standard input, a number of steps, it
makes one uncounted step and then as many on random ids, and answers with their median in milliseconds, or nan if torch.compile
fails.
"""
import time

BEGIN = time.perf_counter()
import argparse
import math
import statistics
import sys

import torch
import torch.nn as nn
import torch.nn.functional as F


def arguments():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    task = p.add_mutually_exclusive_group(required=True)
    task.add_argument("--text")
    task.add_argument("--serve", action="store_true")
    sizes = dict(layers=4, heads=4, dim=128, context=64, batch=12)
    integers = dict(seed=1, steps=2000, **sizes, warmup=100, threads=2, every=250)
    reals = dict(lr=1e-3, min_lr=1e-4, beta2=0.99)
    for name, default in {**integers, **reals}.items():
        p.add_argument("--" + name.replace("_", "-"), type=type(default), default=default)
    p.add_argument("--compile", action="store_true")
    return p.parse_args()


class Norm(nn.Module):
    """LayerNorm without bias."""

    def __init__(self, dim):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, xs):
        return F.layer_norm(xs, self.weight.shape, self.weight, None, 1e-5)


class Block(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = Norm(dim), Norm(dim)
        self.qkv, self.out = nn.Linear(dim, 3 * dim, bias=False), nn.Linear(dim, dim, bias=False)
        self.up, self.down = nn.Linear(dim, 4 * dim, bias=False), nn.Linear(4 * dim, dim, bias=False)

    def attention(self, xs):
        b, t, c = xs.shape
        q, k, v = self.qkv(xs).view(b, t, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)  # 3 of (B, H, T, D)
        ys = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(ys.transpose(1, 2).reshape(b, t, c))

    def forward(self, xs):
        xs = xs + self.attention(self.norm1(xs))
        return xs + self.down(F.gelu(self.up(self.norm2(xs))))


class Gpt(nn.Module):
    def __init__(self, vocab, layers, heads, dim, context):
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocab, dim), nn.Embedding(context, dim)
        self.blocks, self.norm = nn.ModuleList(Block(dim, heads) for _ in range(layers)), Norm(dim)
        for name, p in self.named_parameters():
            # 2L projections add up in the residual stream: the scale keeps its variance independent of depth
            residual = name.endswith(("out.weight", "down.weight"))
            if p.dim() == 2:
                nn.init.normal_(p, 0.0, 0.02 / math.sqrt(2 * layers) if residual else 0.02)

    def forward(self, ids, targets):
        xs = self.tokens(ids) + self.positions.weight[: ids.shape[1]]  # (B, T, C)
        for block in self.blocks:
            xs = block(xs)
        logits = F.linear(self.norm(xs), self.tokens.weight)  # tied: (B, T, V)
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def load(path):
    """The characters as ids in code point order: (train, validation, vocabulary)."""
    with open(path, encoding="utf-8", newline="") as file:
        text = file.read()
    index = {c: i for i, c in enumerate(sorted(set(text)))}
    ids = torch.tensor([index[c] for c in text])
    cut = int(0.9 * len(ids))
    return ids[:cut], ids[cut:], len(index)


def batch(ids, size, context):
    at = torch.randint(len(ids) - context, (size, 1)) + torch.arange(context)  # (B, T)
    return ids[at], ids[at + 1]


@torch.no_grad()
def validate(model, ids, context, rows=128):
    n = (len(ids) - 1) // context
    inputs, targets = ids[: n * context].view(n, context), ids[1 : n * context + 1].view(n, context)
    parts = zip(inputs.split(rows), targets.split(rows))
    return sum(model(x, y).item() * len(x) for x, y in parts) / n


def rate(step, a):
    if step < a.warmup:
        return a.lr * (step + 1) / (a.warmup + 1)
    done = (step - a.warmup) / max(1, a.steps - a.warmup)
    return a.min_lr + 0.5 * (1 + math.cos(math.pi * done)) * (a.lr - a.min_lr)


class Training:
    """A model in training; `step` makes one step and returns its seconds."""

    def __init__(self, a, train, vocab):
        self.a, self.train, self.done = a, train, 0
        self.model = Gpt(vocab, a.layers, a.heads, a.dim, a.context)
        self.forward = torch.compile(self.model) if a.compile else self.model
        matrices = [p for p in self.model.parameters() if p.dim() >= 2]
        vectors = [p for p in self.model.parameters() if p.dim() < 2]
        groups = [dict(params=matrices, weight_decay=0.1), dict(params=vectors, weight_decay=0.0)]
        self.optimizer = torch.optim.AdamW(groups, lr=a.lr, betas=(0.9, a.beta2))

    def step(self):
        start = time.perf_counter()
        inputs, targets = batch(self.train, self.a.batch, self.a.context)
        for group in self.optimizer.param_groups:
            group["lr"] = rate(self.done, self.a)
        loss = self.forward(inputs, targets)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.done += 1
        return time.perf_counter() - start


def answer(training):
    """Answers each line of standard input, a number of steps, with their median in milliseconds."""
    for line in sys.stdin:
        try:
            training.step()
            print(statistics.median(training.step() for _ in range(int(line))) * 1e3, flush=True)
        except torch._dynamo.exc.TorchDynamoException as error:  # such as a missing C++ compiler
            print(f"torch.compile is left out: {error}", file=sys.stderr)
            print("nan", flush=True)


def serve(a):
    vocab = 65  # that of Tiny Shakespeare
    answer(Training(a, torch.randint(vocab, (100_000,)), vocab))


def learn(a):
    train, val, vocab = load(a.text)
    training = Training(a, train, vocab)

    validation = 0.0

    def report(step):
        nonlocal validation
        start = time.perf_counter()
        # the uncompiled model, as other shapes would compile again
        loss = validate(training.model, val, a.context)
        validation += time.perf_counter() - start
        print(f"step {step}  val {loss:.4f}  seconds {time.perf_counter() - BEGIN:.1f}", flush=True)

    times = []
    for step in range(a.steps):
        if step % a.every == 0:
            report(step)
        times.append(training.step())
    report(a.steps)
    start_up = time.perf_counter() - BEGIN - sum(times) - validation
    print(f"seconds: start-up {start_up:.2f}  steps {sum(times):.2f}  validation {validation:.2f}")
    median = statistics.median(times)
    print(
        f"torch {torch.__version__} {'compile' if a.compile else 'eager'}  seed {a.seed}  threads {a.threads}  "
        f"L{a.layers} H{a.heads} C{a.dim} T{a.context} B{a.batch} V{vocab}  "
        f"parameters {sum(p.numel() for p in training.model.parameters())}  "
        f"median {median * 1e3:.2f} ms  {a.batch * a.context / median:.0f} tokens/s"
    )


def main():
    a = arguments()
    torch.set_num_threads(a.threads)
    torch.manual_seed(a.seed)
    serve(a) if a.serve else learn(a)


if __name__ == "__main__":
    main()
