"""A training step of a llama of SmolLM2-135M's shape with torch on the CPU, for `cargo bench --bench training_step`.

    python llama_step.py --serve [--compile] --layers 30 --heads 9 --dim 576 --context 128 --batch 1 ...

Answers like `nanogpt_cpu.py --serve`, whose training it uses: AdamW on all weights, gradients clipped to a norm of 1.
"""
import argparse

import torch
import torch.nn as nn
import torch.nn.functional as F

import nanogpt_cpu


def rotate(xs, cos, sin):
    a, b = xs.chunk(2, -1)
    return xs * cos + torch.cat([-b, a], -1) * sin


class Block(nn.Module):
    def __init__(self, a):
        super().__init__()
        self.shape = [a.heads, a.kv_heads, a.kv_heads]
        self.norm1, self.norm2 = nn.RMSNorm(a.dim, 1e-5), nn.RMSNorm(a.dim, 1e-5)
        self.d = a.dim // a.heads
        self.qkv = nn.Linear(a.dim, sum(self.shape) * self.d, bias=False)
        self.out = nn.Linear(a.dim, a.dim, bias=False)
        self.gate_up, self.down = nn.Linear(a.dim, 2 * a.hidden, bias=False), nn.Linear(a.hidden, a.dim, bias=False)

    def forward(self, xs, cos, sin):
        b, t, c = xs.shape
        qkv = self.qkv(self.norm1(xs)).view(b, t, -1, self.d).transpose(1, 2)
        q, k, v = qkv.split(self.shape, 1)  # (B, H, T, D)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        ys = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        xs = xs + self.out(ys.transpose(1, 2).reshape(b, t, c))
        gate, up = self.gate_up(self.norm2(xs)).chunk(2, -1)
        return xs + self.down(F.silu(gate) * up)


class Llama(nn.Module):
    def __init__(self, a):
        super().__init__()
        self.tokens, self.norm = nn.Embedding(a.vocab, a.dim), nn.RMSNorm(a.dim, 1e-5)
        self.blocks = nn.ModuleList(Block(a) for _ in range(a.layers))
        d = a.dim // a.heads
        angles = torch.arange(a.context)[:, None] * 10000.0 ** (-torch.arange(0, d, 2) / d)
        angles = torch.cat([angles, angles], -1)
        self.register_buffer("cos", angles.cos())
        self.register_buffer("sin", angles.sin())
        for p in self.parameters():
            if p.dim() == 2:
                nn.init.normal_(p, 0.0, 0.02)

    def forward(self, ids, targets):
        xs = self.tokens(ids)
        for block in self.blocks:
            xs = block(xs, self.cos, self.sin)
        logits = F.linear(self.norm(xs), self.tokens.weight)
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


class Training(nanogpt_cpu.Training):
    def __init__(self, a):
        self.a, self.done = a, 0
        self.train = torch.randint(a.vocab, (100_000,))
        self.model = Llama(a)
        self.forward = torch.compile(self.model) if a.compile else self.model
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=a.lr, betas=(0.9, a.beta2))


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--serve", action="store_true", required=True)
    p.add_argument("--compile", action="store_true")
    sizes = dict(layers=30, heads=9, kv_heads=3, dim=576, hidden=1536, vocab=49152, context=128, batch=1)
    for name, default in dict(**sizes, threads=2, warmup=100, steps=2000).items():
        p.add_argument("--" + name.replace("_", "-"), type=int, default=default)
    p.set_defaults(lr=1e-3, min_lr=1e-4, beta2=0.99)
    a = p.parse_args()
    torch.set_num_threads(a.threads)
    torch.manual_seed(1)
    nanogpt_cpu.answer(Training(a))


if __name__ == "__main__":
    main()
