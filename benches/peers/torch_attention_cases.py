"""Random calls of attention, forward and all gradients, compared with torch in four dtypes.

    python benches/peers/torch_attention_cases.py [--cases 1000] [--seed 1]

The truth is the formula in torch's f64 and its autograd. An error may be three times that of the same formula in torch
(in f32 for halves, with results rounded to them), or a few roundings of the largest value. Where torch's own
scaled_dot_product_attention has the options of a case, the formula is held against it first.
"""

import argparse
import json
import math
import pathlib
import subprocess
import tempfile

import torch
from safetensors.torch import load_file, save_file

ROOT = pathlib.Path(__file__).resolve().parents[2]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
TRACKED = ["q", "k", "v", "bias", "sinks"]


def random_case(rng):
    """Options, and tensors in f64."""
    integer = lambda low, high: int(torch.randint(low, high + 1, (), generator=rng))
    chance = lambda p: float(torch.rand((), generator=rng)) < p
    pick = lambda items: items[integer(0, len(items) - 1)]
    normal = lambda *shape: torch.randn(*shape, generator=rng, dtype=torch.float64)
    positions = lambda: pick([lambda: integer(1, 9), lambda: integer(60, 72), lambda: integer(100, 150)])()
    long = chance(0.03)
    t, s = (integer(257, 300), integer(257, 320)) if long else (positions(), positions())
    g = integer(1, 2)
    b, h, d, e = integer(1, 1 if long else 3), g * integer(1, 3), integer(1, 20), integer(1, 20)
    case = {
        "sizes": [b, t, s, h, g, d, e],
        "band": pick(["causal", "full", "window", "prefix"]),
        "band_len": integer(1, 100),
        "layout": pick(["bthd", "bhtd"]),
        "scale": pick([None, None, 0.0, 1.0, 1.7]),
        "softcap": pick([None, None, 2.5, 30.0]),
        "tracked": chance(0.5),
    }
    shape = (lambda n, heads, c: (b, n, heads, c)) if case["layout"] == "bthd" else (lambda n, heads, c: (b, heads, n, c))
    tensors = {"q": normal(*shape(t, h, d)), "k": normal(*shape(s, g, d)), "v": normal(*shape(s, g, e))}
    tensors |= {"dout": normal(*shape(t, h, e)), "dlse": normal(b, h, t)}
    broadcast = lambda: [1 if chance(0.3) else n for n in (b, h, t, s)][integer(0, 2):]
    bits = lambda *shape: (torch.rand(*shape, generator=rng) < pick([0.1, 0.5, 0.9, 1.0])).to(torch.uint8)
    if chance(0.3):
        tensors["documents"] = (bits(b, s).long().cumsum(1) // integer(1, 40)) % 3
    if (t > s and (case["band"] != "full" or "documents" in tensors)) or chance(0.2):
        case["positions"] = [integer(-t, s) for _ in range(b)]
    match integer(0, 5):
        case 0:
            case["left"] = [integer(0, s) for _ in range(b)]
        case 1:
            case["right"] = [integer(0, s) for _ in range(b)]
        case 2:
            tensors["real"] = bits(b, s)
    if chance(0.2):
        tensors["allowed"] = bits(*broadcast())
    if chance(0.3):
        bias = normal(*broadcast())
        tensors["bias"] = bias.masked_fill(bits(*bias.shape) == 0, -math.inf) if chance(0.5) else bias
    if chance(0.3):
        tensors["sinks"] = normal(h)
    if chance(0.2):
        case["alibi"] = [2.0 ** (-8 * (i + 1) / h) for i in range(h)]
    return case, tensors


def visible(case, tensors):
    """(B, H, T, S), and the distances of queries and keys, (B, 1, T, S)."""
    b, t, s, h, *_ = case["sizes"]
    first = torch.tensor(case.get("positions", [s - t] * b)).view(b, 1, 1, 1)
    p, key, n = first + torch.arange(t).view(t, 1), torch.arange(s), case["band_len"]
    band = {"causal": key <= p, "full": key >= 0, "window": (key <= p) & (p < key + n), "prefix": (key <= p) | (key < n)}
    seen = (band[case["band"]] & ((p >= 0) | (case["band"] == "full"))).expand(b, h, t, s)
    if "documents" in tensors:
        numbers = tensors["documents"]
        of_query = numbers.gather(1, p.view(b, t).clamp(0, s - 1)).view(b, 1, t, 1)
        seen = seen & (of_query == numbers.view(b, 1, 1, s)) & (p >= 0) & (p < s)
    if "left" in case:
        seen = seen & (key >= s - torch.tensor(case["left"]).view(b, 1, 1, 1))
    if "right" in case:
        seen = seen & (key < torch.tensor(case["right"]).view(b, 1, 1, 1))
    if "real" in tensors:
        seen = seen & (tensors["real"] != 0).view(b, 1, 1, s)
    if "allowed" in tensors:
        seen = seen & (tensors["allowed"] != 0)
    if "bias" in tensors:
        seen = seen & (tensors["bias"] != -math.inf)
    return seen, (p - key).abs()


def formula(case, x, seen, distance):
    """The output in the layout of the case, and the log-sum-exp (B, H, T)."""
    b, t, s, h, g, d, e = case["sizes"]
    heads_first = (lambda y: y.transpose(1, 2)) if case["layout"] == "bthd" else (lambda y: y)
    q, k, v = (heads_first(x[name]) for name in "qkv")
    k, v = (y.repeat_interleave(h // g, dim=1) for y in (k, v))
    scores = (d**-0.5 if case["scale"] is None else case["scale"]) * q @ k.mT
    if case["softcap"]:
        scores = case["softcap"] * torch.tanh(scores / case["softcap"])
    if "alibi" in case:
        scores = scores - torch.tensor(case["alibi"], dtype=q.dtype).view(h, 1, 1) * distance
    if "bias" in x:
        scores = scores + x["bias"].masked_fill(x["bias"] == -math.inf, 0)
    scores = scores.masked_fill(~seen, -math.inf)
    sink = x["sinks"].view(1, h, 1, 1) if "sinks" in x else torch.full((1, 1, 1, 1), -math.inf, dtype=q.dtype)
    both = torch.cat([scores, sink.expand(b, h, t, 1)], 3)
    max = both.detach().amax(3, keepdim=True)
    max = max.masked_fill(max == -math.inf, 0)
    sums = torch.exp(both - max).sum(3, keepdim=True)
    empty = sums == 0
    out = torch.exp(scores - max) / sums.masked_fill(empty, 1) @ v
    lse = (sums.masked_fill(empty, 1).log() + max).masked_fill(empty, 0).squeeze(3)
    return heads_first(out), lse


def with_gradients(case, tensors, dtype, seen, distance):
    """Results and gradients of the formula in a dtype."""
    x = {name: tensors[name].to(dtype).requires_grad_() for name in TRACKED if name in tensors}
    out, lse = formula(case, x, seen, distance)
    loss = (out * tensors["dout"].to(dtype)).sum() + (lse * tensors["dlse"].to(dtype)).sum()
    gradients = torch.autograd.grad(loss, list(x.values()), allow_unused=True, materialize_grads=True)
    return {"out": out.detach(), "lse": lse.detach()} | {f"d{name}": dx for name, dx in zip(x, gradients)}


def check_formula(case, tensors, seen):
    """Holds the formula against torch's own attention where that has the options."""
    if case["softcap"] or "sinks" in tensors or "alibi" in case or not seen.any(-1).all():
        return 0
    b, t, s, h, g, d, e = case["sizes"]
    heads_first = (lambda y: y.transpose(1, 2)) if case["layout"] == "bthd" else (lambda y: y)
    q, k, v = (heads_first(tensors[name]) for name in "qkv")
    bias = torch.where(seen, tensors.get("bias", torch.zeros((), dtype=q.dtype)), -math.inf)
    theirs = torch.nn.functional.scaled_dot_product_attention(q, k, v, bias, scale=case["scale"], enable_gqa=True)
    ours, _ = formula(case, tensors, seen, None)
    assert torch.allclose(heads_first(theirs), ours, rtol=0, atol=1e-12), case
    return 1


def worst(got, truth):
    difference = (got.double() - truth).abs()
    return float(difference.max()) if difference.isfinite().all() else math.inf


def compare(cases, dtype, folder):
    """The number of cases with an error that is too large."""
    inputs, kept = {}, []
    for i, (case, tensors) in enumerate(cases):
        rounded = {name: x.to(dtype) if x.dtype == torch.float64 else x for name, x in tensors.items()}
        kept.append({name: x.double() if x.dtype == dtype else x for name, x in rounded.items()})
        inputs |= {f"{i}.{name}": x.contiguous() for name, x in rounded.items()}
    (folder / "cases.json").write_text(json.dumps([case for case, _ in cases]))
    save_file(inputs, folder / "inputs.safetensors")
    command = ["cargo", "bench", "-q", "--locked", "-p", "candle-attention", "--bench", "attention_cases", "--", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True)
    results = load_file(folder / "results.safetensors")
    failed = 0
    for i, ((case, _), tensors) in enumerate(zip(cases, kept)):
        seen, distance = visible(case, tensors)
        truth = with_gradients(case, tensors, torch.float64, seen, distance)
        work = torch.float64 if dtype == torch.float64 else torch.float32
        theirs = with_gradients(case, tensors, work, seen, distance)
        # In f64 the truth is rounded as often, which is up to thousands of times a sum.
        roundings = 200 if dtype == torch.float64 else 8
        magnitude = max(float(x.abs().max()) for x in truth.values())
        for name, expected in truth.items():
            got = results.get(f"{i}.{name}")
            if got is None:
                assert name in ("dbias", "dsinks") and not case["tracked"], (name, case)
                continue
            if name == "lse":
                got = got.masked_fill(got == -math.inf, 0)
            kind = work if name == "lse" else dtype
            allowed = 3 * worst(theirs[name].to(kind), expected) + 8 * torch.finfo(kind).eps * float(expected.abs().max())
            # Terms that cancel leave what they were rounded by.
            allowed += roundings * torch.finfo(work).eps * magnitude
            error = worst(got, expected)
            if got.shape != expected.shape or not error <= allowed:
                failed += 1
                print(f"{dtype}, {name}: error {error:.2e}, allowed {allowed:.2e}: {case}, {sorted(tensors)}")
                break
    return failed


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    rng = torch.Generator().manual_seed(arguments.seed)
    cases = [random_case(rng) for _ in range(arguments.cases)]
    held = sum(check_formula(case, tensors, visible(case, tensors)[0]) for case, tensors in cases)
    print(f"the formula equals scaled_dot_product_attention in the {held} cases that it has the options of")
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        for dtype in DTYPES:
            of_dtype = sum(compare(cases[i : i + 200], dtype, pathlib.Path(folder)) for i in range(0, len(cases), 200))
            print(f"{dtype}: {len(cases)} cases, {of_dtype} failed")
            failed += of_dtype
    raise SystemExit(1 if failed else 0)


if __name__ == "__main__":
    main()
