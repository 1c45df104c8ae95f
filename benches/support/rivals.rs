//! Sides that exist only if the environment names them.

use std::process::Command;

use super::peer::{THREADS, bench};

/// This bench from another build, answering as `side`, if `CANDLE_ATTENTION_OTHER_BUILD` names its program.
#[allow(dead_code, reason = "some benches have no such side")]
pub fn other_build(side: &str) -> Option<Command> {
    Some(bench(&std::env::var_os("CANDLE_ATTENTION_OTHER_BUILD")?, side))
}

/// A script in `benches/peers/`, if `CANDLE_ATTENTION_PYTHON` names a Python with torch.
#[allow(dead_code, reason = "some benches have no such side")]
pub fn python(script: &str) -> Option<Command> {
    let mut command = Command::new(std::env::var_os("CANDLE_ATTENTION_PYTHON")?);
    command.arg(format!("{}/benches/peers/{script}", env!("CARGO_MANIFEST_DIR")));
    command.args(["--threads", &THREADS.to_string()]);
    Some(command)
}
