//! io_uring beyond monoio: which set-up flags this kernel has, and the cancelling of a receive that nobody
//! waits for.

use std::{
    collections::HashSet,
    fs, io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd},
    sync::{Mutex, PoisonError},
};

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
const COMPLETION_ENTRIES: u32 = 16 * 1024;

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
    let works = |flags: RingFlags| build_apart(|| flags.builder().build(8));
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

/// A second descriptor of the ring that the runtime of this thread works on.
///
/// monoio keeps its ring to itself. It is found as the one io_uring descriptor that is new after the runtime
/// was built.
#[derive(Debug)]
pub(crate) struct RingHandle(OwnedFd);

/// `IORING_REGISTER_SYNC_CANCEL` with its argument, `struct io_uring_sync_cancel_reg` of linux/io_uring.h.
#[repr(C)]
#[derive(Default)]
struct SyncCancel {
    address: u64,
    descriptor: i32,
    flags: u32,
    timeout_seconds: i64,
    timeout_nanoseconds: i64,
    padding: [u64; 4],
}

const _: () = assert!(size_of::<SyncCancel>() == 64);
const CANCEL_BY_DESCRIPTOR: u32 = 1 << 1;

static BUILDING: Mutex<()> = Mutex::new(());

/// Builds a ring that is not to be taken for the one that [`RingHandle::capture`] looks for on another
/// thread.
pub(super) fn build_apart<R>(build: impl FnOnce() -> R) -> R {
    let _guard = BUILDING.lock().unwrap_or_else(PoisonError::into_inner);
    build()
}

impl RingHandle {
    /// Runs `build`, which makes one ring on this thread, and finds that ring. `None` where /proc is not
    /// there or another part of the process made a ring at the same time.
    pub(crate) fn capture<R>(build: impl FnOnce() -> R) -> (R, Option<Self>) {
        let _guard = BUILDING.lock().unwrap_or_else(PoisonError::into_inner);
        let before = ring_descriptors();
        let built = build();
        let after = ring_descriptors();
        let mut new = after.difference(&before);
        let (first, second) = (new.next(), new.next());
        let handle = match (first, second) {
            (Some(&descriptor), None) => {
                // SAFETY: the number was listed just now as an open ring, and its owner, the runtime that
                // `build` returned, is alive; the descriptor is only borrowed for the time of
                // duplicating it.
                let ring = unsafe { BorrowedFd::borrow_raw(descriptor) };
                ring.try_clone_to_owned().ok().map(Self)
            }
            _ => None,
        };
        (built, handle)
    }

    /// Whether the kernel knows how to cancel: it looks for what is pending on the ring itself, and there is
    /// nothing. Linux before 6.0 does not know the request.
    pub(crate) fn can_cancel(&self) -> bool {
        matches!(self.cancel(self.0.as_raw_fd()), Ok(()) | Err(rustix::io::Errno::NOENT))
    }

    /// Cancels the operation that is pending on a descriptor; it completes with ECANCELED.
    pub(crate) fn cancel(&self, descriptor: RawFd) -> rustix::io::Result<()> {
        let request = SyncCancel {
            descriptor,
            flags: CANCEL_BY_DESCRIPTOR,
            timeout_seconds: -1,
            timeout_nanoseconds: -1,
            ..SyncCancel::default()
        };
        // SAFETY: the argument is one `io_uring_sync_cancel_reg`, alive during the call, and the operation
        // takes exactly one. The kernel only reads it.
        unsafe {
            rustix::io_uring::io_uring_register(
                self.0.as_fd(),
                rustix::io_uring::IoringRegisterOp::RegisterSyncCancel,
                std::ptr::from_ref(&request).cast(),
                1,
            )
        }?;
        Ok(())
    }
}

fn ring_descriptors() -> HashSet<RawFd> {
    let Ok(entries) = fs::read_dir("/proc/self/fd") else { return HashSet::new() };
    entries
        .filter_map(Result::ok)
        .filter(|entry| {
            fs::read_link(entry.path()).is_ok_and(|target| target.as_os_str() == "anon_inode:[io_uring]")
        })
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_new_ring_is_found() {
        if probe_ring().is_err() {
            return;
        }
        let (ring, handle) = RingHandle::capture(|| IoUring::new(8));
        assert!(ring.is_ok() && handle.is_some());
    }

    #[test]
    fn a_kernel_that_cannot_cancel_is_noticed() {
        // It refuses the request, as it does on what is no ring at all.
        let no_ring = RingHandle(fs::File::open("/dev/null").expect("it is everywhere").into());
        assert!(!no_ring.can_cancel());
    }
}
