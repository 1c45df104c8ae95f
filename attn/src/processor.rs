//! The processor of this machine.

/// Its name, as the system tells it; empty where it does not.
pub fn name() -> String {
    let Ok(mut system) = sysinfo::System::new() else { return String::new() };
    system.refresh_cpu_all();
    system.cpus().first().map(|cpu| cpu.brand().trim().to_string()).unwrap_or_default()
}
