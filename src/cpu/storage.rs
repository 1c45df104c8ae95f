//! From tensors to the slices that kernels work on.

use std::cell::Cell;
use std::marker::PhantomData;
use std::ops::Deref;
use std::sync::OnceLock;

use candle_core::{CpuStorage, DType, InplaceOp3, Layout, Result, Storage, StorageRef, Tensor, WithDType, bail};

/// Whether there are kernels for these tensors: `f32` on the CPU, unless second derivatives are wanted. All others take
/// the reference path.
pub(crate) fn has_kernel(tensors: &[&Tensor]) -> bool {
    #[cfg(test)]
    if super::testing::kernels_are_off() {
        return false;
    }
    // The trainer's recording has no second derivatives, and knows only kernels.
    if second_derivatives() && !crate::ops::record::is_recording() {
        return false;
    }
    tensors.iter().all(|tensor| tensor.dtype() == DType::F32 && tensor.device().is_cpu())
}

/// Whether gradients are to have gradients: whether candle's environment variable `CANDLE_GRAD_DO_NOT_DETACH` is set, as
/// candle reads it. The gradients that kernels compute have no graph.
pub(crate) fn second_derivatives() -> bool {
    static ARE_WANTED: OnceLock<bool> = OnceLock::new();
    let read = || std::env::var("CANDLE_GRAD_DO_NOT_DETACH").is_ok_and(|value| !value.is_empty() && value != "0");
    *ARE_WANTED.get_or_init(read)
}

/// The dtype in which to sum many numbers of `dtype`.
pub(crate) fn precise(dtype: DType) -> DType {
    match dtype {
        DType::F16 | DType::BF16 => DType::F32,
        dtype => dtype,
    }
}

/// `xs + parameter`, broadcast over the leading dimensions and rounded once: in half precision the gradient of the
/// parameter, a sum over all rows, is taken in `f32`.
pub(crate) fn add_parameter(xs: &Tensor, parameter: &Tensor) -> Result<Tensor> {
    let precise = precise(xs.dtype());
    xs.to_dtype(precise)?.broadcast_add(&parameter.to_dtype(precise)?)?.to_dtype(xs.dtype())
}

/// Zero, with zero gradients, whatever the tensor holds.
pub(crate) fn zero_with_graph(xs: &Tensor) -> Result<Tensor> {
    let zeros = xs.zeros_like()?.detach();
    zeros.to_dtype(DType::U8)?.where_cond(xs, &zeros)?.sum_all()
}

/// The values of a contiguous `f32` argument of a custom operation.
pub(crate) fn slice<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&storage.as_slice::<f32>()?[start..end]),
        None => bail!("kernel: expected a contiguous tensor, got strides {:?}", layout.stride()),
    }
}

/// The same for an argument that is changed in place.
pub(crate) fn slice_mut<'a>(storage: &'a mut CpuStorage, layout: &Layout) -> Result<&'a mut [f32]> {
    match (storage, layout.contiguous_offsets()) {
        (CpuStorage::F32(values), Some((start, end))) => Ok(&mut values[start..end]),
        _ => bail!("kernel: expected a contiguous tensor of f32 to change"),
    }
}

/// Calls `f` with the values of `tensor`, to change in place, and those of two others: all contiguous and `f32`, on the
/// CPU.
///
/// # Errors
/// If one of the others shares its values with `tensor`, and those of `f`.
pub(crate) fn change(
    tensor: &Tensor,
    [a, b]: [&Tensor; 2],
    f: impl FnOnce(&mut [f32], [&[f32]; 2]) -> Result<()>,
) -> Result<()> {
    tensor.inplace_op3(a, b, &Change(Cell::new(Some(f))))
}

/// candle's way to the values of a tensor.
struct Change<F>(Cell<Option<F>>);

impl<F: FnOnce(&mut [f32], [&[f32]; 2]) -> Result<()>> InplaceOp3 for Change<F> {
    fn name(&self) -> &'static str {
        "change"
    }

    fn cpu_fwd(
        &self,
        storage: &mut CpuStorage,
        layout: &Layout,
        a: &CpuStorage,
        a_l: &Layout,
        b: &CpuStorage,
        b_l: &Layout,
    ) -> Result<()> {
        match self.0.take() {
            Some(f) => f(slice_mut(storage, layout)?, [slice(a, a_l)?, slice(b, b_l)?]),
            None => Ok(()),
        }
    }
}

/// The values of a contiguous `f32` tensor on the CPU, borrowed.
pub(crate) struct Values<'a> {
    storage: StorageRef<'a>,
    start: usize,
    end: usize,
}

/// Borrows the values of a tensor.
pub(crate) fn values(tensor: &Tensor) -> Result<Values<'_>> {
    let (storage, layout) = tensor.storage_and_layout();
    let Some((start, end)) = layout.contiguous_offsets() else {
        bail!("kernel: expected a contiguous tensor, got strides {:?}", layout.stride());
    };
    match &*storage {
        Storage::Cpu(CpuStorage::F32(_)) => Ok(Values { storage, start, end }),
        _ => bail!("kernel: expected a tensor of f32 on the CPU, got {:?}", tensor),
    }
}

/// The values of an `f32` tensor on the CPU in order: borrowed if they lie so, else copied.
#[cfg(feature = "lm")]
pub(crate) enum InOrder<'a> {
    Borrowed(Values<'a>),
    Copied(Vec<f32>),
}

#[cfg(feature = "lm")]
impl<'a> InOrder<'a> {
    pub(crate) fn of(tensor: &'a Tensor) -> Result<Self> {
        match values(tensor) {
            Err(_) if !tensor.is_contiguous() => tensor.flatten_all()?.to_vec1().map(Self::Copied),
            values => values.map(Self::Borrowed),
        }
    }
}

#[cfg(feature = "lm")]
impl Deref for InOrder<'_> {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        match self {
            Self::Borrowed(values) => values,
            Self::Copied(values) => values,
        }
    }
}

/// The values of a tensor on the CPU where they lie, borrowed.
pub(crate) struct Strided<'a, T> {
    storage: StorageRef<'a>,
    layout: &'a Layout,
    element: PhantomData<T>,
}

/// Borrows the values of a tensor with any strides.
pub(crate) fn strided<T: WithDType>(tensor: &Tensor) -> Result<Strided<'_, T>> {
    let (storage, layout) = tensor.storage_and_layout();
    match &*storage {
        Storage::Cpu(values) if values.as_slice::<T>().is_ok() => {}
        _ => bail!("kernel: expected a tensor of {:?} on the CPU, got {:?}", T::DTYPE, tensor),
    }
    Ok(Strided { storage, layout, element: PhantomData })
}

impl<T: WithDType> Strided<'_, T> {
    /// The whole storage, and where the tensor lies in it.
    pub(crate) fn parts(&self) -> (&[T], &Layout) {
        let values = match &*self.storage {
            Storage::Cpu(values) => values.as_slice().unwrap_or_default(),
            // `strided` has checked this, and the lock that is held prevents changes.
            _ => &[],
        };
        (values, self.layout)
    }

    /// The storage from the tensor's first element on.
    pub(crate) fn data(&self) -> &[T] {
        &self.parts().0[self.layout.start_offset()..]
    }

    /// The strides of a tensor of rank 4.
    pub(crate) fn strides4(&self) -> [usize; 4] {
        std::array::from_fn(|dim| self.layout.stride()[dim])
    }
}

impl Deref for Values<'_> {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        match &*self.storage {
            Storage::Cpu(CpuStorage::F32(values)) => &values[self.start..self.end],
            // `values` has checked this, and the lock that is held prevents changes.
            _ => &[],
        }
    }
}
