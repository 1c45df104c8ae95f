//! The loss plot and TensorBoard's events of a run: they say what its metrics say.

use std::path::Path;

use crate::training::{finished_run, new_run, options, resume, run_in};

/// The scalars of every event file of a run: (step, name) and the bits of the value, sorted.
///
/// A reader of its own for the part of the format that is used; that the format is TensorBoard's is held in
/// `train::metrics::tensorboard`.
fn events(root: &Path) -> Vec<(u64, String, u32)> {
    let mut found = vec![];
    for entry in std::fs::read_dir(root.join("training/tensorboard")).unwrap() {
        let bytes = std::fs::read(entry.unwrap().path()).unwrap();
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let length = u64::from_le_bytes(rest[..8].try_into().unwrap()) as usize;
            found.extend(scalars(&rest[12..12 + length]));
            rest = &rest[16 + length..];
        }
    }
    found.sort();
    found
}

/// The fields of a protobuf message: number, integer or fixed value, bytes.
fn fields(mut message: &[u8]) -> Vec<(u64, u64, &[u8])> {
    fn varint(message: &mut &[u8]) -> u64 {
        let length = message.iter().position(|byte| byte & 0x80 == 0).unwrap() + 1;
        let value = message[..length].iter().rev().fold(0, |value, byte| value << 7 | u64::from(byte & 0x7f));
        *message = &message[length..];
        value
    }
    let mut found = vec![];
    while !message.is_empty() {
        let key = varint(&mut message);
        let (mut value, mut length) = (0, 0);
        match key & 7 {
            0 => value = varint(&mut message),
            1 => length = 8,
            2 => length = varint(&mut message) as usize,
            _ => length = 4,
        }
        found.push((key >> 3, value, &message[..length]));
        message = &message[length..];
    }
    found
}

fn scalars(event: &[u8]) -> Vec<(u64, String, u32)> {
    let all = fields(event);
    let step = all.iter().find(|field| field.0 == 2).map_or(0, |field| field.1);
    let values = all.iter().filter(|field| field.0 == 5).flat_map(|field| fields(field.2));
    let scalar = |value: &[u8]| {
        let (mut tag, mut bits) = (String::new(), 0);
        for (number, _, bytes) in fields(value) {
            match number {
                1 => tag = String::from_utf8(bytes.to_vec()).unwrap(),
                _ => bits = u32::from_le_bytes(bytes.try_into().unwrap()),
            }
        }
        (step, tag, bits)
    };
    values.map(|value| scalar(value.2)).collect()
}

/// What the metrics say, as [`events`] gives it.
fn scalars_of_metrics(root: &Path) -> Vec<(u64, String, u32)> {
    let mut found = vec![];
    for line in crate::training::metrics(root) {
        let step = line["step"].as_u64().unwrap();
        let numbers = line.as_object().unwrap().iter().filter(|(name, _)| *name != "step");
        found.extend(numbers.map(|(name, value)| (step, name.clone(), (value.as_f64().unwrap() as f32).to_bits())));
    }
    found.sort();
    found
}

#[test]
fn events_and_plot_of_a_resumed_run_are_those_of_one_that_never_stopped() {
    let space = tempfile::tempdir().unwrap();
    let options = options(12);
    let [whole, parts] = ["whole", "parts"].map(|name| space.path().join(name));
    let plot = |root: &Path| std::fs::read_to_string(root.join("training/loss.svg")).unwrap();

    let (run, _) = finished_run(&whole, &options);
    assert_eq!(events(&whole), scalars_of_metrics(&whole));
    assert_eq!(run.plot_path(), whole.join("training/loss.svg"));

    let (mut run, mut trainer) = new_run(&parts, &options);
    run_in(&mut run, &mut trainer, Some(5));
    drop(run);
    // Steps behind the last checkpoint, which a crash loses.
    let metrics = parts.join("training/metrics.jsonl");
    let mut text = std::fs::read_to_string(&metrics).unwrap();
    text += "{\"step\":6,\"loss\":9.5,\"seconds\":1.0}\n{\"step\":7,\"lo";
    std::fs::write(&metrics, text).unwrap();
    let (mut run, mut trainer) = resume(&parts, "").unwrap();
    run_in(&mut run, &mut trainer, None);
    assert_eq!(events(&parts), events(&whole));
    assert_eq!(plot(&parts), plot(&whole));
    assert_eq!(std::fs::read_dir(parts.join("training/tensorboard")).unwrap().count(), 1);
}

#[test]
fn what_is_in_the_way_of_the_charts_is_named_and_left_alone() {
    let space = tempfile::tempdir().unwrap();
    let root = space.path().join("run");
    drop(finished_run(&root, &options(8)));
    let folder = root.join("training/tensorboard");
    std::fs::remove_dir_all(&folder).unwrap();
    std::fs::write(&folder, b"in the way").unwrap();
    let error = resume(&root, "").err().unwrap().to_string();
    assert!(error.contains("expected a folder") && error.contains("tensorboard"), "{error}");
    assert_eq!(std::fs::read(&folder).unwrap(), b"in the way");
    std::fs::remove_file(&folder).unwrap();
    let _run = resume(&root, "").unwrap();
    assert_eq!(events(&root), scalars_of_metrics(&root));
}
