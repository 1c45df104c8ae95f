"""Reads the event file of a run of `attn` with TensorBoard's own reader and compares it with the run's metrics.

    python read_events.py RUN

Prints each scalar with its number of points, the first and the last. Exit status 1 if a number of metrics.jsonl is missing, left
over, duplicated or different in f32.
"""
import argparse
import json
import struct
import sys
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


def numbers(value, path=""):
    """Every number inside a line of the metrics, by its path."""
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return
    if isinstance(value, (int, float)):
        yield path, value
        return
    items = value.items() if isinstance(value, dict) else ((str(i), each) for i, each in enumerate(value))
    for name, each in items:
        yield from numbers(each, f"{path}/{name}" if path else name)


def from_metrics(path):
    expected = {}
    for line in path.read_text().splitlines():
        line = json.loads(line)
        step = line.pop("step")
        line.pop("seconds")
        for name, value in numbers(line):
            expected.setdefault(name, []).append((step, struct.unpack("f", struct.pack("f", value))[0]))
    return expected


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("run", type=Path)
    training = p.parse_args().run / "training"
    events = EventAccumulator(str(training / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    got = {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    for tag, points in sorted(got.items()):
        first, last = points[0], points[-1]
        print(f"{tag}: {len(points)} points, {first[1]:.6g} at step {first[0]} to {last[1]:.6g} at step {last[0]}")
    times = [e.wall_time for e in events.Scalars("loss")]
    print(f"wall time: {times[-1] - times[0]:.2f} s, never back: {times == sorted(times)}")
    expected = from_metrics(training / "metrics.jsonl")
    wrong = [tag for tag in sorted(expected.keys() | got.keys()) if expected.get(tag) != got.get(tag)]
    print("differs from metrics.jsonl: " + ", ".join(wrong) if wrong else "the same as metrics.jsonl")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
