//! How much memory there is, looked at before large allocations: one that fails ends the process.

use sysinfo::{ProcessesToUpdate, System};

use super::{Result, bail};

/// The memory of this machine or, in a container, of its control group; in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Memory {
    /// What a process can have at most.
    pub total: usize,
    /// What is free now, or is used for nothing but copies of files.
    pub available: usize,
}

impl Memory {
    /// As the system says now; without bounds where it does not say.
    pub fn now() -> Self {
        let Ok(mut system) = System::new() else { return Self { total: usize::MAX, available: usize::MAX } };
        system.refresh_memory();
        let (mut group, mut resident) = (None, 0);
        if let Ok(id) = sysinfo::get_current_pid() {
            system.refresh_processes(ProcessesToUpdate::Some(&[id]), false);
            if let Some(process) = system.process(id) {
                group = process.cgroup_limits().map(|limits| limits.total_memory);
                resident = process.memory();
            }
        }
        Self::of([system.total_memory(), system.available_memory()], group, resident)
    }

    /// From the machine's total and available memory, the limit of its control group, and what this process occupies.
    ///
    /// The group's own figure of free memory counts the copies of files that it has read as used, though the system
    /// drops these when memory is needed.
    fn of([total, available]: [u64; 2], group: Option<u64>, resident: u64) -> Self {
        let group = group.unwrap_or(u64::MAX);
        Self { total: total.min(group) as usize, available: available.min(group.saturating_sub(resident)) as usize }
    }
}

/// Refuses what needs more memory than there can be; `None` stands for more bytes than 64 bits count.
///
/// # Errors
/// Names both amounts.
pub(crate) fn check(what: &str, bytes: Option<usize>) -> Result<()> {
    /// Not worth asking the system for.
    const UNCHECKED_BYTES: usize = 1 << 26;
    if bytes.is_some_and(|bytes| bytes <= UNCHECKED_BYTES) {
        return Ok(());
    }
    let total = Memory::now().total;
    let megabytes = |bytes: usize| bytes.div_ceil(1_000_000);
    match bytes {
        Some(bytes) if bytes <= total => Ok(()),
        Some(bytes) => bail!("{what}: expected at most {} MB of memory, got {} MB", megabytes(total), megabytes(bytes)),
        None => bail!("{what}: expected at most {} MB of memory, got more than 64 bits count", megabytes(total)),
    }
}

/// The bytes of a tensor, or `None` if the number overflows.
pub(crate) fn tensor_bytes(shape: &[usize], bytes_each: usize) -> Option<usize> {
    shape.iter().try_fold(bytes_each, |bytes, size| bytes.checked_mul(*size))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn a_group_has_what_its_processes_do_not_occupy_whatever_files_it_has_read() {
        // A container of 1 GiB, of which 900 MiB are pages of files, on a machine with much more.
        let memory = Memory::of([24_000 * MIB, 20_000 * MIB], Some(1024 * MIB), 60 * MIB);
        assert_eq!(memory, Memory { total: 1024 << 20, available: 964 << 20 });
        // The machine itself may have less than the group's limit.
        let memory = Memory::of([8_000 * MIB, 500 * MIB], Some(1024 * MIB), 60 * MIB);
        assert_eq!(memory, Memory { total: 1024 << 20, available: 500 << 20 });
        let memory = Memory::of([8_000 * MIB, 500 * MIB], None, 60 * MIB);
        assert_eq!(memory, Memory { total: 8_000 << 20, available: 500 << 20 });
        assert_eq!(Memory::of([8 * MIB, MIB], Some(2 * MIB), 3 * MIB).available, 0);
    }

    #[test]
    fn this_machine_has_memory_and_not_everything_fits() {
        let memory = Memory::now();
        assert!(memory.available > 0 && memory.available <= memory.total, "{memory:?}");
        check("a model", Some(1000)).unwrap();
        check("a model", Some(memory.total)).unwrap();
        let error = check("a model", Some(memory.total + 1)).unwrap_err().to_string();
        assert!(error.starts_with("a model: expected at most") && error.contains("MB of memory, got"), "{error}");
        assert!(check("a model", tensor_bytes(&[usize::MAX, 2], 4)).is_err());
    }
}
