//! From tensors to the slices that kernels work on.

use std::marker::PhantomData;
use std::ops::Deref;

use candle_core::{CpuStorage, DType, Layout, Result, Storage, StorageRef, Tensor, WithDType, bail};

/// Whether there are kernels for these tensors: `f32` on the CPU. All others take the reference path.
pub(crate) fn has_kernel(tensors: &[&Tensor]) -> bool {
    #[cfg(test)]
    if super::testing::kernels_are_off() {
        return false;
    }
    tensors.iter().all(|tensor| tensor.dtype() == DType::F32 && tensor.device().is_cpu())
}

/// The dtype in which to sum many numbers of `dtype`.
pub(crate) fn precise(dtype: DType) -> DType {
    match dtype {
        DType::F16 | DType::BF16 => DType::F32,
        dtype => dtype,
    }
}

/// Zero, with zero gradients, whatever the tensor holds.
pub(crate) fn nothing_of(xs: &Tensor) -> Result<Tensor> {
    if xs.elem_count() == 0 {
        return xs.sum_all(); // candle's `where_cond` panics
    }
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
