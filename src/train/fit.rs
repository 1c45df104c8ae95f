//! Whether tensors read back are those of a model.

use std::collections::BTreeMap;

use candle_core::{DType, Result, Tensor, bail};

use crate::errors::listed;

/// Refuses `tensors` that are not those `expected`, by name and shape, all of `f32`.
///
/// # Errors
/// Naming `what` they are, and listing all that are missing, misshapen and left over.
pub(super) fn check(what: &str, tensors: &BTreeMap<String, Tensor>, expected: &[(String, Vec<usize>)]) -> Result<()> {
    let fault = |(name, shape): &(String, Vec<usize>)| match tensors.get(name) {
        None => Some(format!("{name} is missing")),
        Some(tensor) if tensor.dims() != shape => {
            Some(format!("{name}: expected shape {shape:?}, got {:?}", tensor.dims()))
        }
        Some(tensor) if tensor.dtype() != DType::F32 => {
            Some(format!("{name}: expected dtype F32, got {:?}", tensor.dtype()))
        }
        Some(_) => None,
    };
    let mut faults: Vec<String> = expected.iter().filter_map(fault).collect();
    let left_over = tensors.keys().filter(|name| !expected.iter().any(|(its, _)| its == *name));
    faults.extend(left_over.map(|name| format!("{name} has no place in the model")));
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
            "it: b: expected shape [2, 3], got [3, 2]; c: expected dtype F32, got F64; d is missing; e has no place in the model"
        );
    }
}
