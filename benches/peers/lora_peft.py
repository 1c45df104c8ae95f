"""Fine-tunes a model with torch and PEFT (LoRA on all linear layers of the blocks) on the CPU, for `cargo bench --bench lora`.

    python lora_peft.py MODEL TEXT [--batch 1] [--context 128] [--rank 8] [--alpha 16] [--lr 5e-4] [--threads 2]

For each line of standard input, a number of steps, it makes them on consecutive windows of the text and answers with the
median of their milliseconds, tokens per second, the peak of the process in MiB, and the mean loss of the first and of the
last five.
"""
import argparse
import statistics
import sys
import time

import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer


def arguments():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("model")
    p.add_argument("text")
    for name, default in dict(batch=1, context=128, rank=8, alpha=16.0, lr=5e-4, threads=2).items():
        p.add_argument("--" + name, type=type(default), default=default)
    return p.parse_args()


def peak():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) / 1024 for line in file if line.startswith("VmHWM"))


def main():
    a = arguments()
    torch.set_num_threads(a.threads)
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_pretrained(a.model, dtype=torch.float32)
    lora = LoraConfig(task_type="CAUSAL_LM", r=a.rank, lora_alpha=a.alpha, target_modules="all-linear")
    model = get_peft_model(model, lora).train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=a.lr, betas=(0.9, 0.999), weight_decay=0.0)
    with open(a.text, encoding="utf-8", newline="") as file:
        text = file.read()
    ids = torch.tensor(AutoTokenizer.from_pretrained(a.model)(text, add_special_tokens=False)["input_ids"])
    for line in sys.stdin:
        times, losses = [], []
        for step in range(int(line)):
            start = time.perf_counter()
            at = torch.arange(a.batch).unsqueeze(1) * a.context + step * a.batch * a.context + torch.arange(a.context)
            logits = model(ids[at], use_cache=False).logits
            loss = F.cross_entropy(logits.flatten(0, 1), ids[at + 1].flatten())
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            losses.append(loss.item())
            times.append((time.perf_counter() - start) * 1e3)
        ms = statistics.median(times)
        speed = a.batch * a.context / ms * 1e3
        print(ms, speed, peak(), statistics.mean(losses[:5]), statistics.mean(losses[-5:]), flush=True)


if __name__ == "__main__":
    main()
