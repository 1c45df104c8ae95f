"""Opens the folder of a run of `attn train --lora` with PEFT, to check that it reads the same model.

    python open_adapter.py RUN [--expect FILE.json]

The base model is found by the adapter's own `base_model_name_or_path`. FILE.json has this project's f32 logits for some ids:
{"ids": [T ids], "logits": [T rows of V numbers]}. Exit status 1 if a matrix is missing, left over or not a part of the
model, or the logits differ by more than 1e-4 of the largest.
"""
import argparse
import json
import sys
import warnings

import torch
from peft import AutoPeftModelForCausalLM
from safetensors import safe_open
from transformers import AutoTokenizer


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("run")
    p.add_argument("--expect")
    p.add_argument("--threads", type=int, default=2)
    a = p.parse_args()
    torch.set_num_threads(a.threads)
    warnings.filterwarnings("error", message=".*missing adapter keys")  # of which PEFT only warns
    model = AutoPeftModelForCausalLM.from_pretrained(a.run, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(a.run)
    adapter = {name.replace(".default", "") for name, _ in model.named_parameters() if ".lora_" in name}
    with safe_open(f"{a.run}/adapter_model.safetensors", "pt") as file:
        unfit = adapter.symmetric_difference(file.keys())
    kind = model.config.model_type
    print(f"{kind}: {len(adapter)} matrices, {'all found, none left over' if not unfit else unfit}; {len(tokenizer)} tokens")
    difference = 0.0
    if a.expect:
        with open(a.expect) as file:
            expect = json.load(file)
        with torch.no_grad():
            theirs = model(torch.tensor([expect["ids"]])).logits[0]  # (T, V)
            base = model.unload()(torch.tensor([expect["ids"]])).logits[0]
        ours, largest = torch.tensor(expect["logits"]), theirs.abs().max()
        difference = ((ours - theirs).abs().max() / largest).item()
        print(f"logits: largest difference {difference:.1e} of the largest; the base's own: {((base - theirs).abs().max() / largest):.1e}")
    sys.exit(bool(unfit) or difference > 1e-4)


if __name__ == "__main__":
    main()
