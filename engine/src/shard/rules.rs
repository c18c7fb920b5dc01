//! How topics treat their subscribers, and who says so: a function of the topic's name.

use std::{fmt, sync::Arc, time::Duration};

use crate::connection::OutboxFull;

/// Whether newer publications replace older ones.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Conflation {
    /// Every publication is delivered.
    #[default]
    Off,
    /// A subscriber who has fallen behind (above its high mark or full, until its low mark) gets the newest
    /// value of each key; the older ones that have not left yet are replaced, keeping their place.
    Latest,
}

/// How a topic treats its subscribers.
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct TopicSettings {
    /// What happens when a subscriber's outbox is full; `None`: what the connection says, or the
    /// configuration for all. Which of the queued messages are dropped for a new one, the oldest, does not
    /// depend on their topics. A close code that may not be sent becomes 1000.
    pub full: Option<OutboxFull>,
    /// Whether newer publications replace older ones. Default: off.
    pub conflation: Conflation,
    /// Gathers publications for this long, as exactly as the kernel's timers go, and delivers them together:
    /// fewer sends, more latency. Default: off, a publication leaves at the end of the turn.
    ///
    /// A publication above 8 KiB ends the gathering, and where [`Conflation::Latest`] replaces what waits,
    /// nothing is gathered.
    pub window: Option<Duration>,
}

/// Chooses the settings of a topic by its name, when a shard first hears of it.
#[derive(Clone)]
pub struct TopicRules(Arc<dyn Fn(&str) -> TopicSettings + Send + Sync>);

impl TopicRules {
    /// Rules by a function of the topic's name.
    ///
    /// ```
    /// use ringwire::{Conflation, TopicRules, TopicSettings};
    ///
    /// let rules = TopicRules::new(|name| {
    ///     let mut settings = TopicSettings::default();
    ///     if name.starts_with("prices/") {
    ///         settings.conflation = Conflation::Latest;
    ///     }
    ///     settings
    /// });
    /// ```
    pub fn new(rules: impl Fn(&str) -> TopicSettings + Send + Sync + 'static) -> Self {
        Self(Arc::new(rules))
    }

    /// What the rules say about a topic. They are the user's, and may panic.
    pub(super) fn settings(&self, name: &str) -> TopicSettings {
        let mut settings = (self.0)(name);
        settings.window = settings.window.filter(|window| !window.is_zero());
        settings
    }
}

impl Default for TopicRules {
    fn default() -> Self {
        Self::new(|_| TopicSettings::default())
    }
}

impl fmt::Debug for TopicRules {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("TopicRules")
    }
}
