"""Opens a run folder of `attn` with transformers, to check that it reads the same model.

    python open_run.py RUN [--prompt S] [--max-tokens N] [--expect FILE.json]

FILE.json has this project's f32 logits for some ids: {"ids": [T ids], "logits": [T rows of V numbers]}.
Exit status 1 if a weight is missing, unexpected or of the wrong shape, or the prompt does not survive encoding and decoding.
"""
import argparse
import json
import sys

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer


def arguments():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("run")
    p.add_argument("--prompt", default="the ")
    p.add_argument("--max-tokens", type=int, default=40)
    p.add_argument("--expect")
    return p.parse_args()


def open_model(run):
    """The model, and what in the file did not fit it, if anything."""
    model, info = AutoModelForCausalLM.from_pretrained(
        run, local_files_only=True, output_loading_info=True, dtype=torch.float32
    )
    return model.eval(), {key: sorted(map(str, value)) for key, value in info.items() if value}


@torch.no_grad()
def continue_greedily(model, ids, count):
    """Plain argmax, one token at a time, so that no default of `generate` interferes; the context slides at its end."""
    ids = list(ids)
    for _ in range(count):
        window = torch.tensor([ids[-model.config.max_position_embeddings :]])
        ids.append(model(window).logits[0, -1].argmax().item())
    return ids


@torch.no_grad()
def compare(model, path):
    with open(path) as file:
        expect = json.load(file)
    theirs = model(torch.tensor([expect["ids"]])).logits[0]  # (T, V)
    ours = torch.tensor(expect["logits"])
    assert ours.shape == theirs.shape, f"logits of {tuple(ours.shape)}, transformers has {tuple(theirs.shape)}"
    agree = (ours.argmax(-1) == theirs.argmax(-1)).sum().item()
    print(f"logits: largest difference {(ours - theirs).abs().max():.3e}, of at most {theirs.abs().max():.3e}; "
          f"argmax agrees at {agree} of {len(ours)} positions")


def main():
    a = arguments()
    config = AutoConfig.from_pretrained(a.run, local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(a.run, local_files_only=True)
    model, unfit = open_model(a.run)
    # parameters() counts a tied matrix once
    print(f"{type(model).__name__} ({config.model_type}), {sum(p.numel() for p in model.parameters())} parameters; "
          f"{type(tokenizer).__name__}, {len(tokenizer)} tokens")
    print(f"weights: {unfit or 'all found, none left over'}")

    ids = tokenizer(a.prompt)["input_ids"]
    round_trip = tokenizer.decode(ids)
    print(f"prompt {a.prompt!r} -> {ids} -> {round_trip!r}")
    ids = ids[-config.max_position_embeddings :]
    with torch.no_grad():
        print("argmax after each:", model(torch.tensor([ids])).logits[0].argmax(-1).tolist())
    print("greedy:", repr(tokenizer.decode(continue_greedily(model, ids, a.max_tokens))))
    if a.expect:
        compare(model, a.expect)
    sys.exit(bool(unfit) or round_trip != a.prompt)


if __name__ == "__main__":
    main()
