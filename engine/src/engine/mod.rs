//! Starting, pinning and stopping: the only layer where threads live.

mod config;
mod cores;
mod error;
mod handle;
mod start;

pub use config::{Config, ConfigError};
pub use cores::Cores;
pub use error::Error;
pub use handle::{Answer, EngineHandle, HandleError, Topic};
pub use start::{Driver, Engine, PortSharing, ShardInfo};
