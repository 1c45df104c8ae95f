"""Opens a run folder of `attn` with mlx-lm (pip install mlx-lm "mlx[cpu]"), and compares its logits.

    python open_run_mlx.py RUN [--expect FILE.json]

FILE.json is what benches/peers/candle_transformers writes: {"ids": [T ids], "logits": [T rows of V numbers]}. Exit status 1
if a logit differs by more than 1e-4.
"""
import argparse
import json
import sys

import mlx.core as mx
import numpy
from mlx_lm import load


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("run")
    p.add_argument("--expect")
    a = p.parse_args()
    mx.set_default_device(mx.cpu)
    model, tokenizer = load(a.run)
    print(f"{type(model).__module__}, {len(tokenizer.vocab)} tokens")
    if not a.expect:
        return
    with open(a.expect) as file:
        expect = json.load(file)
    theirs = numpy.array(model(mx.array([expect["ids"]])).astype(mx.float32))[0]
    difference = numpy.abs(theirs - numpy.array(expect["logits"])).max()
    print(f"logits: largest difference {difference:.3e}, of at most {numpy.abs(theirs).max():.3e}")
    sys.exit(int(difference > 1e-4))


main()
