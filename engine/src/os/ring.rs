//! Which set-up flags of io_uring this kernel has.

use std::io;

use io_uring::{Builder, IoUring};

/// The set-up flags in use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct RingFlags {
    /// Linux 6.0: one thread submits.
    pub(crate) single_issuer: bool,
    /// Linux 5.19: completions do not interrupt the thread.
    pub(crate) coop_taskrun: bool,
    /// Linux 6.1: completions are processed when the thread waits.
    pub(crate) defer_taskrun: bool,
}

/// Completions that fit before the kernel has to keep some back.
pub(super) const COMPLETION_ENTRIES: u32 = 16 * 1024;

impl RingFlags {
    pub(crate) fn builder(self) -> Builder {
        let mut builder = IoUring::builder();
        builder.setup_cqsize(COMPLETION_ENTRIES).setup_clamp();
        if self.single_issuer {
            builder.setup_single_issuer();
        }
        if self.coop_taskrun {
            builder.setup_coop_taskrun();
        }
        if self.defer_taskrun {
            builder.setup_defer_taskrun();
        }
        builder
    }
}

impl std::fmt::Display for RingFlags {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names = [
            (self.single_issuer, "single_issuer"),
            (self.coop_taskrun, "coop_taskrun"),
            (self.defer_taskrun, "defer_taskrun"),
        ];
        let names: Vec<&str> = names.iter().filter(|(on, _)| *on).map(|(_, name)| *name).collect();
        formatter.write_str(if names.is_empty() { "none" } else { "" })?;
        formatter.write_str(&names.join("+"))
    }
}

/// Tries flag by flag what this kernel takes.
///
/// # Errors
/// When the kernel refuses any ring: too old, or io_uring is blocked.
pub(crate) fn probe_ring() -> io::Result<RingFlags> {
    let works = |flags: RingFlags| flags.builder().build(8);
    works(RingFlags::default())?;
    let mut flags = RingFlags::default();
    for flag in [
        RingFlags { coop_taskrun: true, ..RingFlags::default() },
        RingFlags { single_issuer: true, ..RingFlags::default() },
        // Needs a single issuer.
        RingFlags { single_issuer: true, defer_taskrun: true, ..RingFlags::default() },
    ] {
        let tried = RingFlags {
            single_issuer: flags.single_issuer || flag.single_issuer,
            coop_taskrun: flags.coop_taskrun || flag.coop_taskrun,
            defer_taskrun: flags.defer_taskrun || flag.defer_taskrun,
        };
        if works(tried).is_ok() {
            flags = tried;
        }
    }
    Ok(flags)
}
