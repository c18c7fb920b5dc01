//! The configuration, with the field's usual defaults.

use std::{net::SocketAddr, time::Duration};

use super::{Cores, Driver, PortSharing};
use crate::{
    connection::{OutboxFull, OutboxLimits, Settings, Timeouts},
    protocol::{CloseCode, Limits},
    shard::{TopicLimits, TopicRules},
};

/// Everything about an engine that can be chosen. Every limit of size is on by default.
///
/// ```
/// use ringwire::Config;
///
/// let mut config = Config::new(([127, 0, 0, 1], 0).into());
/// config.message_bytes_max = 64 * 1024;
/// assert!(config.validate().is_ok());
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Config {
    /// Where to listen. With port 0 the kernel chooses;
    /// [`Engine::local_address`](crate::Engine::local_address) tells.
    pub listen: SocketAddr,
    /// The cores that get a shard each. Default: all.
    pub cores: Cores,
    /// How the kernel is spoken to. Default: io_uring where it can be had, else epoll.
    pub driver: Driver,
    /// Whether other processes may listen on the same address. Default: no.
    pub port_sharing: PortSharing,
    /// Connections that wait to be accepted, per core. Default: 4096; the kernel's `net.core.somaxconn` caps
    /// it.
    pub backlog: u32,
    /// Connections per shard; more are turned away with 503. Default: 1,000,000.
    pub connections_max: usize,
    /// The largest message that is received, in bytes; larger ones end the connection with 1009. Default: 1
    /// MiB.
    pub message_bytes_max: usize,
    /// The largest number of fragments of a received message; more end the connection with 1008. Default:
    /// 16,384.
    pub fragments_max: u32,
    /// The largest head of an upgrade request, in bytes; larger ones are answered with 431. Default: 8 KiB.
    pub header_bytes_max: usize,
    /// What may wait to be sent to one peer, in bytes of encoded frames; data frames never exceed it. Where
    /// received messages are sent back or published, it has to hold the largest of them
    /// (`message_bytes_max` and 10 bytes), or those would count as a full outbox even of peers who keep up.
    /// Default: 2 MiB.
    pub outbox_bytes_max: usize,
    /// Above this a send answers `Backpressure`. Default: 256 KiB.
    pub outbox_bytes_high: usize,
    /// Having been above `outbox_bytes_high`, or having refused a message, `on_drain` is called when no more
    /// than this waits. Default: 64 KiB.
    pub outbox_bytes_low: usize,
    /// What happens to a message for which there is no room. Default: the connection is closed with 1013.
    pub outbox_full: OutboxFull,
    /// How each topic treats its subscribers. Default: [`TopicSettings::default`](crate::TopicSettings) for
    /// all.
    pub topic_rules: TopicRules,
    /// The longest name of a topic, in bytes. Default: 256.
    pub topic_name_bytes_max: usize,
    /// Subscriptions per connection. Default: 1024.
    pub topics_per_connection_max: usize,
    /// Memory for receive buffers per shard, in bytes. At the cap, and beyond 7,680 active ones, connections
    /// receive by readiness, without a buffer of their own. Default: 64 MiB.
    pub buffer_bytes_max: usize,
    /// Receive buffers of 4 KiB that each shard allocates at start. Default: 256.
    pub buffers_preallocated: usize,
    /// From accept to the end of the upgrade, a deferred decision included. Default: 10 s.
    pub handshake_timeout: Duration,
    /// Without a message in either direction for this long, the connection is closed with 1001. Default:
    /// off.
    pub idle_timeout: Option<Duration>,
    /// From the last byte received to a keepalive ping. Default: 25 s.
    pub ping_interval: Option<Duration>,
    /// From a keepalive ping, or the last sign of life after it, to the loss of the connection. Default:
    /// 10 s.
    pub pong_timeout: Duration,
    /// From a close frame sent, or the answer to a plain HTTP request, to the end of the transport. Default:
    /// 5 s.
    pub close_timeout: Duration,
    /// The longest life of a connection, which then is closed with 1001. Default: off.
    pub connection_lifetime_max: Option<Duration>,
    /// Each lifetime is lengthened by up to this at random. Default: 0.
    pub connection_lifetime_jitter: Duration,
}

/// A configuration that contradicts itself.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// A limit that must not be zero is; of times, milliseconds count.
    #[error(
        "{field} is 0, or less than a millisecond: nothing would get through; None is off where there is one"
    )]
    Zero {
        /// The field's name.
        field: &'static str,
    },
    /// The marks of the outbox are not in order.
    #[error("outbox_bytes_low <= outbox_bytes_high <= outbox_bytes_max does not hold: {low}, {high}, {max}")]
    OutboxMarks {
        /// `outbox_bytes_low`.
        low: usize,
        /// `outbox_bytes_high`.
        high: usize,
        /// `outbox_bytes_max`.
        max: usize,
    },
    /// The close code of `outbox_full` may not be sent (RFC 6455 section 7.4).
    #[error("close code {code} may not be sent: use 1000-1003, 1007-1014 or 3000-4999")]
    CloseCode {
        /// The code.
        code: u16,
    },
    /// A list of cores is empty or names one twice.
    #[error("cores: {}", .core.map_or("the list is empty".into(), |core| format!("{core} is named twice")))]
    Cores {
        /// The core that is named twice.
        core: Option<usize>,
    },
}

impl Config {
    /// The defaults, listening on `listen`.
    #[must_use]
    pub fn new(listen: SocketAddr) -> Self {
        Self {
            listen,
            cores: Cores::All,
            driver: Driver::Auto,
            port_sharing: PortSharing::Exclusive,
            backlog: 4096,
            connections_max: 1_000_000,
            message_bytes_max: 1024 * 1024,
            fragments_max: 16 * 1024,
            header_bytes_max: 8 * 1024,
            outbox_bytes_max: 2 * 1024 * 1024,
            outbox_bytes_high: 256 * 1024,
            outbox_bytes_low: 64 * 1024,
            outbox_full: OutboxFull::Close(CloseCode::TRY_AGAIN_LATER),
            topic_rules: TopicRules::default(),
            topic_name_bytes_max: 256,
            topics_per_connection_max: 1024,
            buffer_bytes_max: 64 * 1024 * 1024,
            buffers_preallocated: 256,
            handshake_timeout: Duration::from_secs(10),
            idle_timeout: None,
            ping_interval: Some(Duration::from_secs(25)),
            pong_timeout: Duration::from_secs(10),
            close_timeout: Duration::from_secs(5),
            connection_lifetime_max: None,
            connection_lifetime_jitter: Duration::ZERO,
        }
    }

    /// Looks for contradictions; [`Engine::start`](crate::Engine::start) does so as well.
    ///
    /// # Errors
    /// The first one found.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let nonzero = [
            ("connections_max", self.connections_max),
            ("message_bytes_max", self.message_bytes_max),
            ("fragments_max", self.fragments_max as usize),
            ("header_bytes_max", self.header_bytes_max),
            ("outbox_bytes_max", self.outbox_bytes_max),
            ("backlog", self.backlog as usize),
            ("handshake_timeout", self.handshake_timeout.as_millis() as usize),
            ("pong_timeout", self.pong_timeout.as_millis() as usize),
            ("close_timeout", self.close_timeout.as_millis() as usize),
            ("idle_timeout", self.idle_timeout.map_or(1, |timeout| timeout.as_millis() as usize)),
            ("ping_interval", self.ping_interval.map_or(1, |interval| interval.as_millis() as usize)),
            (
                "connection_lifetime_max",
                self.connection_lifetime_max.map_or(1, |lifetime| lifetime.as_millis() as usize),
            ),
        ];
        if let Some(&(field, _)) = nonzero.iter().find(|(_, value)| *value == 0) {
            return Err(ConfigError::Zero { field });
        }
        let (low, high, max) = (self.outbox_bytes_low, self.outbox_bytes_high, self.outbox_bytes_max);
        if low > high || high > max {
            return Err(ConfigError::OutboxMarks { low, high, max });
        }
        if let OutboxFull::Close(code) = self.outbox_full
            && !code.is_allowed_on_wire()
        {
            return Err(ConfigError::CloseCode { code: code.value() });
        }
        if let Cores::List(list) = &self.cores {
            let repeated = list.iter().enumerate().find(|(index, core)| list[..*index].contains(core));
            if list.is_empty() || repeated.is_some() {
                return Err(ConfigError::Cores { core: repeated.map(|(_, core)| *core) });
            }
        }
        Ok(())
    }

    pub(super) fn topic_limits(&self) -> TopicLimits {
        TopicLimits { name_bytes_max: self.topic_name_bytes_max, topics_max: self.topics_per_connection_max }
    }

    pub(super) fn settings(&self) -> Settings {
        Settings {
            message: Limits { message_bytes_max: self.message_bytes_max, fragments_max: self.fragments_max },
            header_bytes_max: self.header_bytes_max,
            outbox: OutboxLimits {
                bytes_max: self.outbox_bytes_max,
                bytes_high: self.outbox_bytes_high,
                bytes_low: self.outbox_bytes_low,
                full: self.outbox_full,
            },
            timeouts: Timeouts {
                handshake: self.handshake_timeout,
                idle: self.idle_timeout,
                ping_interval: self.ping_interval,
                pong: self.pong_timeout,
                close: self.close_timeout,
                lifetime: self.connection_lifetime_max,
                lifetime_jitter: self.connection_lifetime_jitter,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> Config {
        Config::new(([127, 0, 0, 1], 0).into())
    }

    #[test]
    fn the_defaults_are_valid() {
        assert_eq!(config().validate(), Ok(()));
    }

    #[test]
    fn contradictions_are_named() {
        let mut zero = config();
        zero.message_bytes_max = 0;
        assert_eq!(zero.validate(), Err(ConfigError::Zero { field: "message_bytes_max" }));

        let mut marks = config();
        marks.outbox_bytes_max = 1000;
        assert!(matches!(marks.validate(), Err(ConfigError::OutboxMarks { max: 1000, .. })));

        let mut code = config();
        code.outbox_full = OutboxFull::Close(CloseCode::ABNORMAL);
        assert_eq!(code.validate(), Err(ConfigError::CloseCode { code: 1006 }));

        let mut cores = config();
        cores.cores = Cores::List(vec![0, 1, 0]);
        assert_eq!(cores.validate(), Err(ConfigError::Cores { core: Some(0) }));
    }
}
