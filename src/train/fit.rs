//! Checks tensors read from a file against those of a model.

use std::collections::BTreeMap;

use candle_core::{DType, Result, Tensor, bail};

use crate::errors::listed;

/// Checks that `tensors` are those `expected`, by name and shape, all of `f32`.
///
/// # Errors
/// Those of [`check_typed`].
pub(super) fn check(what: &str, tensors: &BTreeMap<String, Tensor>, expected: &[(String, Vec<usize>)]) -> Result<()> {
    let expected: Vec<_> = expected.iter().map(|(name, shape)| (name.clone(), shape.clone(), DType::F32)).collect();
    check_typed(what, tensors, &expected)
}

/// Checks that `tensors` are those `expected`, by name, shape and dtype.
///
/// # Errors
/// If not: names `what` they are, and lists all that are missing, misshapen or unexpected.
pub(super) fn check_typed(
    what: &str,
    tensors: &BTreeMap<String, Tensor>,
    expected: &[(String, Vec<usize>, DType)],
) -> Result<()> {
    let fault = |(name, shape, dtype): &(String, Vec<usize>, DType)| match tensors.get(name) {
        None => Some(format!("{name} is missing")),
        Some(tensor) if tensor.dims() != shape => {
            Some(format!("{name}: expected shape {shape:?}, got {:?}", tensor.dims()))
        }
        Some(tensor) if tensor.dtype() != *dtype => {
            Some(format!("{name}: expected dtype {dtype:?}, got {:?}", tensor.dtype()))
        }
        Some(_) => None,
    };
    let mut faults: Vec<String> = expected.iter().filter_map(fault).collect();
    let unexpected = tensors.keys().filter(|name| !expected.iter().any(|(its, ..)| its == *name));
    faults.extend(unexpected.map(|name| format!("{name} has no place in it")));
    if faults.is_empty() { Ok(()) } else { bail!("{what}: {}", listed(&faults)) }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::errors::bare;

    #[test]
    fn all_that_does_not_fit_is_listed() {
        let tensor = |shape: &[usize], dtype| Tensor::zeros(shape, dtype, &Device::Cpu).unwrap();
        let named = |names: &[(&str, &[usize], DType)]| -> BTreeMap<String, Tensor> {
            names.iter().map(|(name, shape, dtype)| (name.to_string(), tensor(shape, *dtype))).collect()
        };
        let expected = ["a", "b", "c", "d"].map(|name| (name.to_string(), vec![2, 3]));
        let (fits, f32) = (&[2, 3][..], DType::F32);
        check("it", &named(&[("a", fits, f32), ("b", fits, f32), ("c", fits, f32), ("d", fits, f32)]), &expected)
            .unwrap();
        let faulty = named(&[("a", fits, f32), ("b", &[3, 2], f32), ("c", fits, DType::F64), ("e", fits, f32)]);
        assert_eq!(
            bare(&check("it", &faulty, &expected).unwrap_err()).to_string(),
            "it: b: expected shape [2, 3], got [3, 2]; c: expected dtype F32, got F64; d is missing; e has no place in it"
        );
    }
}
