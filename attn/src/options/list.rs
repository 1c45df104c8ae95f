//! Every option, in the order of the help.

use super::Kind::{Choice, Number, NumberOrAuto, Switch, Text, Texts, Whole, WholeOrAuto};
use super::{Opt, opt};

/// Options of the texts.
pub const DATA: &[Opt] = &[
    opt(
        "texts",
        Texts("TEXT"),
        "Text files and folders to train on: UTF-8, or any bytes with --tokenizer byte; - is standard input. With --init, a \
         .jsonl file whose lines have messages is written in the model's chat template, and only the assistant's turns are \
         learned",
    ),
    opt("validation", Texts("FILE"), "Text file or folder to validate on, instead of the end of TEXT; may be repeated"),
    opt(
        "validation-fraction",
        NumberOrAuto("FRACTION"),
        "Part of TEXT held out, from its end [default: 0.1, at most 256 KiB]",
    ),
    opt(
        "split-at-end-of-text",
        Switch,
        "Let <|endoftext|> in a text separate documents, as the borders of files do; otherwise it is read as that token, or \
         as plain text by a tokenizer that has none",
    ),
    opt(
        "accept-unknown",
        Switch,
        "Accept characters that a tokenizer.json has no token for: they become its unknown token, or nothing; one of \
         char refuses them all the same",
    ),
    opt(
        "init",
        Text("DIR"),
        "Start from the model in this folder; training options are then those of gpt2, unless set; with --minutes the \
         schedule is warmup-stable-decay",
    ),
];

/// Options of a new model, which `--init` takes from its folder.
pub const MODEL: &[Opt] = &[
    opt(
        "tokenizer",
        Text("TOKENIZER"),
        "char, byte, bpe:N (at most N tokens), the path of a tokenizer.json, or auto, which follows from the text and the time \
         [default: auto]",
    ),
    opt("architecture", Choice(&["gpt2", "llama", "qwen3"]), "Model architecture"),
    opt("layers", Whole(1), "Number of blocks"),
    opt("heads", WholeOrAuto(1), "Number of attention heads [default: --dim / --head-dim where only --dim is given]"),
    opt("head-dim", WholeOrAuto(1), "Width of a head [default: --dim / --heads where both are given]"),
    opt("dim", WholeOrAuto(2), "Width of the residual stream [default: --heads times --head-dim]"),
    opt("kv-heads", WholeOrAuto(1), "Number of key and value heads; not for gpt2 [default: as many as --heads]"),
    opt("hidden", WholeOrAuto(1), "Width of the feed-forward networks [default: 4 times --dim, with a gate 8/3]"),
    opt("rope-theta", Number("BASE"), "Base of the rotary position embedding; not for gpt2 [default: 10000]"),
    opt("bias", Switch, "Give projections a bias: in gpt2 the norms too, in qwen3 only those of attention"),
    opt("tie", Switch, "Use the token embedding as output projection"),
    opt("zero-residual", Switch, "Initialise the projections into the residual stream to zero"),
];

/// Options of training, with the names of `TrainOptions`; adapters and dropout are the model's.
pub const TRAINING: &[Opt] = &[
    opt(
        "minutes",
        Number("MINUTES"),
        "Time of the run, from 0.1 to 1000: decides on what you don't set of the sizes and on the number of steps \
         [default: 1; with --steps, a preset or --init, as many steps as these say]",
    ),
    opt("steps", Whole(1), "Number of optimizer steps, however long they take"),
    opt("batch", Whole(1), "Sequences per step"),
    opt(
        "context",
        WholeOrAuto(1),
        "Context length: the maximum number of tokens the model sees at once. With --init, the length of the sequences to \
         train on, up to the model's context, which it keeps",
    ),
    opt(
        "shards",
        Whole(1),
        "Parts of a batch, side by side on threads of their own or, if few, in turn [default: 4; up to one for each thread \
         where the sizes are chosen for a time]",
    ),
    opt("accumulate", Whole(1), "Split each batch into N parts, which takes less memory [default: 1]"),
    opt(
        "precision",
        Choice(&["f32", "bf16"]),
        "Products of a training step: in bf16 with sums in f32, faster on a processor with avx512_bf16 [default: f32]",
    ),
    opt("isolate-documents", Switch, "Keep attention within a document where a window spans several"),
    opt("lora", Whole(0), "Train adapters (LoRA) of rank N for the model of --init, which stays as it is; 0 for none"),
    opt("lora-alpha", NumberOrAuto("ALPHA"), "Scale the adapters by ALPHA / N [default: twice --lora]"),
    opt(
        "dropout",
        NumberOrAuto("RATE"),
        "Dropout rate, from 0 to below 1 [default: more the more often the text is read, or that of a preset (0 if it has none) or of --init]",
    ),
    opt("lr", Number("RATE"), "Peak learning rate"),
    opt("min-lr", Number("FACTOR"), "Final learning rate, as a multiple of --lr"),
    opt("warmup", Number("FRACTION"), "Warm-up of the learning rate, as a fraction of --steps"),
    opt(
        "schedule",
        Choice(&["cosine", "linear", "constant", "warmup-stable-decay"]),
        "Learning rate after the warm-up; all but constant end at --min-lr",
    ),
    opt("decay", Number("FRACTION"), "Decay of --schedule warmup-stable-decay, as a fraction of --steps"),
    opt(
        "optimizer",
        Choice(&["adamw", "muon"]),
        "Optimizer; muon is for the matrices inside the blocks, with AdamW for the rest",
    ),
    opt("matrix-lr", Number("FACTOR"), "Peak learning rate of Muon's matrices, as a multiple of --lr"),
    opt("matrix-weight-decay", Number("RATE"), "Weight decay of Muon's matrices"),
    opt("momentum", Number("DECAY"), "Muon's momentum"),
    opt("embedding-lr", Number("FACTOR"), "Peak learning rate of the embeddings, as a multiple of --lr"),
    opt("beta1", Number("BETA"), "AdamW's decay rate of the first moment [default: 0.9]"),
    opt("beta2", Number("BETA"), "AdamW's decay rate of the second moment [default: 0.99]"),
    opt("weight-decay", Number("RATE"), "AdamW's weight decay, applied to matrices only"),
    opt("clip", Number("NORM"), "Global gradient norm above which gradients are scaled down, or 0 [default: 1]"),
    opt(
        "label-smoothing",
        Number("SHARE"),
        "Share of each target's probability spread over the vocabulary [default: 0]",
    ),
    opt(
        "average",
        Number("FRACTION"),
        "Span of a moving average of the weights, which then is the model, as a fraction of --steps; 0 for none",
    ),
    opt(
        "eval-every",
        WholeOrAuto(1),
        "Steps between validations [default: a fifth of --steps, or more, so that all \
         validations but the last cost a tenth of the steps at most]",
    ),
    opt("patience", Whole(0), "Stop after N validations in a row without a lower loss; 0 for never [default: 0]"),
    opt("save-every", Number("MINUTES"), "Maximum minutes between checkpoints [default: 10]"),
    opt("keep", Whole(1), "Number of checkpoints to keep [default: 2]"),
    opt("statistics-every", Whole(0), "Steps between norms of all tensors in the metrics; 0 for never [default: 0]"),
    opt("watch", Text("TEXT"), "Keep attention maps of this text, at about forty steps, for attn inspect to play"),
    opt("seed", Whole(0), "Seed of all randomness: initial weights, batches and dropout [default: 1]"),
];
