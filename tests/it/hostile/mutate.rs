//! Broken copies of a good file, the same every time.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};

/// Replacements for a value in JSON or TOML, as text.
pub fn values() -> Vec<String> {
    let numbers = [
        "null",
        "true",
        "false",
        "-1",
        "-0.0",
        "0",
        "1",
        "2",
        "3.5",
        "1e300",
        "-1e300",
        "1e999",
        "1e-300",
        "4294967295",
        "4294967296",
        "9223372036854775807",
        "9223372036854775808",
        "18446744073709551615",
        "18446744073709551616",
        "NaN",
        "Infinity",
        "-Infinity",
        "inf",
        "nan",
    ];
    let strings =
        ["", "NaN", "\u{1b}[31m", "../../etc/passwd", "/dev/zero", "\u{0}", "a b", "<unk>", "(((((", "x{1,1000000}"];
    let mut all: Vec<String> = numbers.map(String::from).into();
    all.extend(strings.map(|text| json!(text).to_string()));
    all.extend([json!("🦀é\u{202e}").to_string(), json!("a".repeat(100_000)).to_string()]);
    all.extend(["[]", "{}", "[[]]", "[null]", "{\"a\": 1}", "[0, 0]", "[[\"a\", 0]]"].map(String::from));
    all.extend([format!("{}{}", "[".repeat(100_000), "]".repeat(100_000)), "{\"a\":".repeat(100_000)]);
    all
}

/// Paths to `value` itself and all values in it.
fn places(value: &Value, at: String, all: &mut Vec<String>) {
    all.push(at.clone());
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                places(value, format!("{at}/{}", key.replace('~', "~0").replace('/', "~1")), all);
            }
        }
        Value::Array(list) => {
            list.iter().enumerate().for_each(|(i, value)| places(value, format!("{at}/{i}"), all));
        }
        _ => {}
    }
}

const HOLE: &str = "a hole where a value was";

/// The text of `good` with its value at `place` replaced by `text`.
pub fn replaced(good: &Value, place: &str, text: &str) -> String {
    let mut mutant = good.clone();
    *mutant.pointer_mut(place).unwrap() = HOLE.into();
    mutant.to_string().replacen(&json!(HOLE).to_string(), text, 1)
}

/// `good` without the value at `place`, and with it twice.
fn without_and_twice(good: &Value, place: &str) -> Vec<String> {
    let Some((parent, key)) = place.rsplit_once('/') else { return vec![] };
    let key = key.replace("~1", "/").replace("~0", "~");
    let mut mutant = good.clone();
    match mutant.pointer_mut(parent) {
        Some(Value::Object(map)) => {
            let value = map.remove(&key).unwrap();
            let twice = format!("{{{k}: {value}, {k}: {value}}}", k = json!(key));
            vec![mutant.to_string(), replaced(good, parent, &twice)]
        }
        Some(Value::Array(list)) => {
            list.remove(key.parse().unwrap());
            vec![mutant.to_string()]
        }
        _ => vec![],
    }
}

/// A JSON file with each value replaced by each odd one, removed, and doubled.
pub fn structured(good: &[u8]) -> Vec<Vec<u8>> {
    let good: Value = serde_json::from_slice(good).unwrap();
    let mut all_places = vec![];
    places(&good, String::new(), &mut all_places);
    let mut all = vec![];
    for place in all_places {
        all.extend(values().iter().map(|value| replaced(&good, &place, value)));
        all.extend(without_and_twice(&good, &place));
    }
    all.into_iter().map(String::into_bytes).collect()
}

/// `good` truncated: everywhere if it is short, otherwise near the start, near the end and at places in between.
pub fn truncated(good: &[u8]) -> Vec<Vec<u8>> {
    let step = good.len().div_ceil(200).max(1);
    let interesting = (0..good.len()).filter(|n| *n < 40 || *n + 40 > good.len() || n.is_multiple_of(step));
    interesting.map(|n| good[..n].to_vec()).collect()
}

/// Random bytes, some after a plausible start.
pub fn noise(rng: &mut ChaCha8Rng) -> Vec<u8> {
    let mut bytes: Vec<u8> = match rng.random_range(0..4) {
        0 => b"{\"model_type\": \"gpt2\", ".to_vec(),
        1 => (rng.random_range(0..64u64)).to_le_bytes().to_vec(),
        _ => vec![],
    };
    bytes.extend((0..rng.random_range(0..300)).map(|_| rng.random::<u8>()));
    bytes
}

/// `good` with one to eight bytes, or runs of bytes, flipped, replaced, inserted, removed or copied.
pub fn edited(good: &[u8], rng: &mut ChaCha8Rng) -> Vec<u8> {
    let mut bytes = good.to_vec();
    // Half of the edits are at the start, where headers are.
    let near = if rng.random::<bool>() { bytes.len().min(400) } else { bytes.len() };
    for _ in 0..rng.random_range(1..=8) {
        let at = rng.random_range(0..near.min(bytes.len()).max(1)).min(bytes.len().saturating_sub(1));
        let end = bytes.len().min(at + rng.random_range(1..16));
        match rng.random_range(0..6) {
            _ if bytes.is_empty() => bytes.push(rng.random()),
            0 => bytes[at] ^= 1 << rng.random_range(0..8),
            1 => bytes[at] = rng.random(),
            2 => bytes.insert(at, rng.random()),
            3 => drop(bytes.drain(at..end)),
            4 => bytes[at] = *b"0123456789-.eE[]{}\",:/\\nu".get(rng.random_range(0..25)).unwrap(),
            _ => {
                let part = bytes[at..end].to_vec();
                let to = rng.random_range(0..=bytes.len());
                bytes.splice(to..to, part);
            }
        }
    }
    bytes
}

/// Truncations, and `random` random mutants.
pub fn broken(good: &[u8], seed: u64, random: usize) -> Vec<Vec<u8>> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut all = truncated(good);
    for n in 0..random {
        all.push(if n % 8 == 0 { noise(&mut rng) } else { edited(good, &mut rng) });
    }
    all
}

/// Safetensors files with false headers.
pub fn lying_headers(good: &[u8]) -> Vec<Vec<u8>> {
    let length = u64::from_le_bytes(good[..8].try_into().unwrap());
    let (header, data) = good[8..].split_at(length as usize);
    let with_length = |length: u64| [&length.to_le_bytes(), &good[8..]].concat();
    let mut all: Vec<Vec<u8>> =
        [0, 1, length - 1, length + 1, good.len() as u64, 100_000_000, 1 << 32, 1 << 63, u64::MAX, u64::MAX - 7]
            .map(with_length)
            .into();
    let whole = |header: &[u8]| [&(header.len() as u64).to_le_bytes(), header, data].concat();
    all.extend(structured(header).iter().map(|header| whole(header)));
    let mut header: Value = serde_json::from_slice(header).unwrap();
    let names: Vec<String> =
        header.as_object().unwrap().keys().filter(|name| *name != "__metadata__").cloned().collect();
    for name in &names {
        for dtype in
            ["BOOL", "F4", "F6_E2M3", "F8_E8M0", "F8_E5M2", "F8_E4M3", "I64", "U16", "F64", "C64", "F16", "BF16"]
        {
            let mut mutant = header.clone();
            mutant[name]["dtype"] = dtype.into();
            all.push(whole(mutant.to_string().as_bytes()));
            let bytes = match dtype {
                "I64" | "F64" | "C64" => 2,
                _ => 1,
            };
            if bytes == 1 {
                // As many bytes as before, so that only the shape changes.
                if let Some(last) = mutant[name]["shape"].as_array_mut().and_then(|shape| shape.last_mut()) {
                    let parts = if dtype.contains("16") { 2 } else { 4 };
                    *last = (last.as_u64().unwrap() * parts).into();
                    all.push(whole(mutant.to_string().as_bytes()));
                }
            }
        }
        for odd in ["", "__metadata__", "a\u{1b}[2Jb", "x\ny", "transformer.", "lm_head.weight", "wte.weight"] {
            let mut mutant = header.clone();
            let info = mutant.as_object_mut().unwrap().remove(name).unwrap();
            mutant[odd] = info;
            all.push(whole(mutant.to_string().as_bytes()));
        }
    }
    // Lengths whose sum is that of the file only if it wraps around 2^64.
    let (end, huge) = (data.len() as u64, (1u64 << 61) - 1);
    for part in 0..9u64 {
        let from = if part == 0 { end } else { end + part * huge };
        let to = if part == 8 { u64::MAX } else { from + huge };
        header[format!("x{part}")] =
            json!({ "dtype": "U8", "shape": [to.wrapping_sub(from)], "data_offsets": [from, to] });
        all.push(whole(header.to_string().as_bytes()));
        if to == u64::MAX {
            break;
        }
    }
    all
}
