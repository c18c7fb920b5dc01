//! Points in time as the sans-IO layers see them: milliseconds handed in by the caller, never read from a
//! clock.

use std::time::Duration;

/// A point in time, in milliseconds since an origin that the caller chose.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timestamp(u64);

impl Timestamp {
    /// Later than every deadline.
    pub const NEVER: Self = Self(u64::MAX);

    /// The point `milliseconds` after the origin.
    #[must_use]
    pub const fn from_millis(milliseconds: u64) -> Self {
        Self(milliseconds)
    }

    /// Milliseconds since the origin.
    #[must_use]
    pub const fn as_millis(self) -> u64 {
        self.0
    }

    /// How long it is since `earlier`; zero when `earlier` is in the future.
    #[must_use]
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }

    /// This point moved on by `duration`, never past [`NEVER`](Self::NEVER).
    #[must_use]
    pub fn after(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)))
    }

    /// This point moved on by `duration`, or [`NEVER`](Self::NEVER) when there is none.
    #[must_use]
    pub fn after_some(self, duration: Option<Duration>) -> Self {
        duration.map_or(Self::NEVER, |duration| self.after(duration))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn additions_saturate() {
        assert_eq!(Timestamp::NEVER.after(Duration::from_secs(1)), Timestamp::NEVER);
        assert_eq!(Timestamp::from_millis(5).after(Duration::MAX), Timestamp::NEVER);
        assert_eq!(Timestamp::from_millis(5).since(Timestamp::from_millis(9)), Duration::ZERO);
        assert_eq!(Timestamp::from_millis(5).after_some(None), Timestamp::NEVER);
    }
}
