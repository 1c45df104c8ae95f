"""Reads a GGUF file that `attn convert` wrote with other programs, and compares it with the folder it was made from.

    attn convert RUN --gguf FILE.gguf --type f32
    python read_gguf.py FILE.gguf RUN --text TEXT

Readers: the `gguf` package (tensors against model.safetensors, in the layout of llama.cpp's converter), transformers' loader of
GGUF (logits, and ids of byte-level vocabularies) and, if llama-cpp-python is installed, llama.cpp (ids, logits). Exit status 1
if something differs by more than the way the file stores weights explains.
"""
import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from gguf import GGUFReader, MODEL_ARCH, dequantize, get_tensor_name_map
from safetensors.numpy import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

# of the largest weight of a tensor; of the largest logit. llama.cpp has keys and values in 16 bits.
TENSORS = {0: 0.0, 1: 1e-3, 7: 1e-2}
LOGITS = {0: 1e-5, 1: 1e-2, 7: 5e-2}
LLAMA_CPP = {0: 5e-3, 1: 1e-2, 7: 5e-2}


def arguments():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("file", type=Path)
    p.add_argument("run", type=Path)
    p.add_argument("--text", type=Path, required=True, help="UTF-8; as much of it as fits the model's context is read")
    return p.parse_args()


def paired(weights, heads):
    """Rows of a head as llama.cpp's `llama` has them: those that turn together are neighbours."""
    return weights.reshape(heads, 2, weights.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(weights.shape)


def compare_tensors(reader, run, config):
    """The largest difference, relative to the largest weight of its tensor."""
    arch = {"gpt2": MODEL_ARCH.GPT2, "llama": MODEL_ARCH.LLAMA, "qwen3": MODEL_ARCH.QWEN3}[config.model_type]
    names = get_tensor_name_map(arch, config.num_hidden_layers)
    theirs = {t.name: dequantize(t.data, t.tensor_type) for t in reader.tensors}
    worst = 0.0
    for name, weights in load_file(run / "model.safetensors").items():
        stem, suffix = name.rsplit(".", 1)
        found = theirs.pop(f"{names.get_name(stem)}.{suffix}")
        is_projection = any(part in name for part in (".c_attn.", ".c_proj.", ".c_fc."))
        if config.model_type == "gpt2" and is_projection and suffix == "weight":
            weights = weights.T
        if config.model_type == "llama" and ".q_proj." in name:
            weights = paired(weights, config.num_attention_heads)
        if config.model_type == "llama" and ".k_proj." in name:
            weights = paired(weights, config.num_key_value_heads)
        assert found.shape == weights.shape, f"{name}: {found.shape} for {weights.shape}"
        worst = max(worst, float(np.abs(found - weights).max() / (np.abs(weights).max() + 1e-9)))
    assert not theirs, f"left over: {sorted(theirs)}"
    return worst


@torch.no_grad()
def logits_of(model, ids):
    return model.eval()(torch.tensor([ids])).logits[0].numpy()


def transformers_model(file, run):
    """Its loader takes sizes of the original models for granted in gpt2 and qwen3, unless it is given the configuration."""
    config = AutoConfig.from_pretrained(run)
    config = {} if config.model_type == "llama" else {"config": config}
    return AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32, **config)


def llama_cpp_reads(file, text, ids):
    """Ids of the text, and logits after `ids`."""
    import llama_cpp

    model = llama_cpp.Llama(str(file), n_ctx=len(ids), n_threads=1, logits_all=True, verbose=False)
    theirs = model.tokenize(text.encode(), add_bos=True, special=True)
    model.eval(ids)
    return theirs, np.array(model.scores[: len(ids)])


def main():
    a = arguments()
    config = AutoConfig.from_pretrained(a.run)
    reader = GGUFReader(a.file)
    kind = int(reader.fields["general.file_type"].contents())
    vocabulary = reader.fields["tokenizer.ggml.model"].contents()
    failures = []

    def report(what, got, at_most):
        print(f"{what}: {got:.2e} (at most {at_most:.0e})")
        failures.extend([what] if not got <= at_most else [])

    def same(what, is_same):
        print(f"{what}: {'the same' if is_same else 'DIFFERENT'}")
        failures.extend([] if is_same else [what])

    tokens = reader.fields["tokenizer.ggml.tokens"].contents()
    same("gguf: as many tokens as rows", len(tokens) == config.vocab_size)
    report("gguf: tensors", compare_tensors(reader, a.run, config), TENSORS[kind])

    text, tokenizer = a.text.read_text(encoding="utf-8"), AutoTokenizer.from_pretrained(a.run)
    whole = tokenizer(text)["input_ids"]
    ids = whole[: config.max_position_embeddings]
    ours = logits_of(AutoModelForCausalLM.from_pretrained(a.run, dtype=torch.float32), ids)
    scale = np.abs(ours).max()
    theirs = logits_of(transformers_model(a.file, a.run), ids)
    report("transformers: logits", np.abs(theirs - ours).max() / scale, LOGITS[kind])
    if vocabulary == "gpt2":
        same("transformers: ids", AutoTokenizer.from_pretrained(a.file.parent, gguf_file=a.file.name)(text)["input_ids"] == whole)
    else:
        print("transformers: its reader puts a space in front of a text whatever the file says: ids are not compared")
    try:
        theirs, logits = llama_cpp_reads(a.file, text, ids)
    except ImportError:
        print("llama.cpp: not installed (pip install llama-cpp-python)")
    else:
        same("llama.cpp: ids", theirs == whole)
        report("llama.cpp: logits", np.abs(logits - ours).max() / scale, LLAMA_CPP[kind])
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
