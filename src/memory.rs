//! How much memory is available, checked before large allocations: one that fails ends the process.

use std::fs;
use std::path::Path;

use candle_core::{Result, bail};

/// The bytes assumed to be available if the system does not say: more than any machine this is meant for has.
const UNKNOWN_BYTES: usize = 1 << 40;

/// Bytes that are not worth a check.
const UNCHECKED_BYTES: usize = 1 << 26;

/// Bytes of memory available now, according to Linux: the lowest of what the machine and the control groups of this
/// process have left. On other systems a terabyte, whatever there is.
pub fn available() -> usize {
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let machine = status_bytes("/proc/meminfo", "MemAvailable:");
    [left_to(&groups, Path::new("/sys/fs/cgroup")), machine].into_iter().flatten().min().unwrap_or(UNKNOWN_BYTES)
}

/// The names that a version of Linux's control groups uses for a group's limit, its use, and the reclaimable part of
/// that: pages of files that have not been used lately.
struct Names {
    most: &'static str,
    current: &'static str,
    idle: &'static str,
}

/// Bytes that the groups in `membership`, the content of `/proc/self/cgroup`, and the groups around them may still
/// allocate; `None` if none has a limit. Their folders are in `mounted`.
fn left_to(membership: &str, mounted: &Path) -> Option<usize> {
    let left = membership.lines().filter_map(|line| {
        let (controllers, group) = line.split_once(':')?.1.split_once(':')?;
        let group = Path::new(group.strip_prefix('/')?);
        let (mounted, names) = match controllers {
            "" => {
                (mounted.to_path_buf(), Names { most: "memory.max", current: "memory.current", idle: "inactive_file" })
            }
            _ if controllers.split(',').any(|controller| controller == "memory") => (
                mounted.join("memory"),
                Names { most: "memory.limit_in_bytes", current: "memory.usage_in_bytes", idle: "total_inactive_file" },
            ),
            _ => return None,
        };
        // In a container the mounted folder may be that of its own group, which has another name outside.
        group.ancestors().filter_map(|group| left_in(&mounted.join(group), &names)).min()
    });
    left.min()
}

/// Bytes that a group may still allocate, if it has a limit.
fn left_in(group: &Path, names: &Names) -> Option<usize> {
    let read = |name: &str| fs::read_to_string(group.join(name)).ok();
    let number = |name: &str| read(name)?.trim().parse::<usize>().ok();
    let (most, current) = (number(names.most)?, number(names.current).unwrap_or(0));
    let statistics = read("memory.stat").unwrap_or_default();
    let mut fields = statistics.lines().filter_map(|line| line.split_once(' '));
    let idle = fields.find(|(name, _)| *name == names.idle).and_then(|(_, bytes)| bytes.parse().ok()).unwrap_or(0);
    Some(most.saturating_sub(current.saturating_sub(idle)))
}

/// The value in bytes of a field of one of Linux's status files, which has it in kB; `None` on other systems.
pub fn status_bytes(path: &str, field: &str) -> Option<usize> {
    let text = fs::read_to_string(path).ok()?;
    let line = text.lines().find(|line| line.starts_with(field))?;
    line.split_whitespace().nth(1)?.parse::<usize>().ok()?.checked_mul(1024)
}

/// Refuses what needs more memory than is available; `None` stands for more bytes than 64 bits can count.
///
/// # Errors
/// Names both amounts.
pub fn check(what: &str, bytes: Option<usize>) -> Result<()> {
    let megabytes = |bytes: usize| bytes.div_ceil(1_000_000);
    match bytes {
        Some(bytes) if bytes <= UNCHECKED_BYTES => Ok(()),
        // Where the system does not say how much there is, it may still refuse as much at once.
        Some(bytes) if bytes <= available() && Vec::<u8>::new().try_reserve_exact(bytes).is_ok() => Ok(()),
        Some(bytes) => {
            bail!("{what}: expected at most {} MB of memory, got {} MB", megabytes(available()), megabytes(bytes))
        }
        None => bail!("{what}: expected at most {} MB of memory, got more than 64 bits count", megabytes(available())),
    }
}

/// The bytes of a tensor, or `None` if the number overflows.
pub fn tensor_bytes(shape: &[usize], bytes_each: usize) -> Option<usize> {
    shape.iter().try_fold(bytes_each, |bytes, size| bytes.checked_mul(*size))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Groups as Linux shows them: folder, file and content.
    fn groups(files: &[(&str, &str, &str)]) -> tempfile::TempDir {
        let mounted = tempfile::tempdir().unwrap();
        for (group, name, content) in files {
            fs::create_dir_all(mounted.path().join(group)).unwrap();
            fs::write(mounted.path().join(group).join(name), content).unwrap();
        }
        mounted
    }

    #[test]
    fn what_a_group_has_taken_is_not_left_and_the_tightest_group_decides() {
        let mounted = groups(&[
            ("", "memory.stat", "inactive_file 900\n"),
            ("slice", "memory.max", "4000\n"),
            ("slice", "memory.current", "3500\n"),
            ("slice", "memory.stat", "anon 3100\nfile 400\ninactive_file 300\nactive_file 100\n"),
            ("slice/own.scope", "memory.max", "max\n"),
            ("slice/tight.scope", "memory.max", "700\n"),
            ("slice/tight.scope", "memory.current", "900\n"),
            ("slice/fresh.scope", "memory.max", "200\n"),
        ]);
        let left = |membership: &str| left_to(membership, mounted.path());
        assert_eq!(left("0::/slice/own.scope\n"), Some(800));
        assert_eq!(left("0::/slice/own.scope/below"), Some(800));
        assert_eq!(left("0::/slice/tight.scope\n"), Some(0));
        assert_eq!(left("1:cpu:/slice\n0::/slice/fresh.scope\n"), Some(200));
        for none in ["0::/", "0::/elsewhere", "", "1:cpu:/slice", "nonsense", "0::slice"] {
            assert_eq!(left(none), None, "{none}");
        }
    }

    #[test]
    fn the_older_control_groups_are_asked_too() {
        let mounted = groups(&[
            ("memory", "memory.limit_in_bytes", "5000\n"),
            ("memory", "memory.usage_in_bytes", "4500\n"),
            ("memory", "memory.stat", "inactive_file 1\ntotal_inactive_file 250\n"),
            ("memory/docker/1", "memory.limit_in_bytes", "9223372036854771712\n"),
        ]);
        let left = |membership: &str| left_to(membership, mounted.path());
        assert_eq!(left("5:cpu,cpuacct:/\n4:hugetlb,memory:/docker/1\n0::/\n"), Some(750));
        // A container that sees its own group as the whole.
        assert_eq!(left("4:memory:/docker/a-name-from-outside\n"), Some(750));
    }

    #[test]
    fn what_no_memory_holds_is_refused_with_the_figure() {
        assert!(check("a", Some(1000)).is_ok());
        assert!(check("a", Some(UNCHECKED_BYTES + 1)).is_ok());
        let error = check("a", Some(1 << 52)).unwrap_err().to_string();
        assert!(error.starts_with("a: expected at most") && error.contains("got 4503599628 MB"), "{error}");
        assert_eq!(tensor_bytes(&[1 << 40, 1 << 40], 4), None);
        assert!(check("a", tensor_bytes(&[1 << 40, 1 << 40], 4)).is_err());
    }
}
