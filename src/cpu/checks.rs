//! Checks that several operations make of their arguments.

use candle_core::{Result, Tensor, bail};

use super::storage::precise;

/// Refuses a tensor whose dtype or device differs from another's.
pub(crate) fn check_alike(op: &str, name: &str, tensor: &Tensor, other_name: &str, other: &Tensor) -> Result<()> {
    if tensor.dtype() != other.dtype() {
        bail!("{op}: expected {name} of the dtype {:?} of {other_name}, got {:?}", other.dtype(), tensor.dtype());
    }
    if !tensor.device().same_device(other.device()) {
        let (expected, got) = (other.device().location(), tensor.device().location());
        bail!("{op}: expected {name} on the device {expected:?} of {other_name}, got {got:?}");
    }
    Ok(())
}

/// Refuses an average that an optimizer keeps, unless it is in the dtype in which to sum those of the variable.
pub(crate) fn check_state_dtype(op: &str, name: &str, average: &Tensor, var: &Tensor) -> Result<()> {
    let expected = precise(var.dtype());
    if average.dtype() != expected {
        bail!("{op}: expected a {name} of dtype {expected:?} for {:?}, got {:?}", var.dtype(), average.dtype());
    }
    Ok(())
}

/// Refuses a soft cap that is not above 0 in the range of `f32`, in which kernels use it.
pub(crate) fn check_softcap(op: &str, softcap: Option<f64>) -> Result<()> {
    match softcap {
        Some(cap) if !(cap > 0.0 && (cap as f32).is_normal()) => {
            bail!("{op}: expected a softcap above 0 that is a number of f32, got {cap}")
        }
        _ => Ok(()),
    }
}

/// Refuses numbers that are negative or not finite.
pub(crate) fn check_not_negative(op: &str, numbers: &[(&str, f64)]) -> Result<()> {
    match numbers.iter().find(|(_, number)| !(*number >= 0.0 && number.is_finite())) {
        Some((name, number)) => bail!("{op}: expected {name} of at least 0, got {number}"),
        None => Ok(()),
    }
}
