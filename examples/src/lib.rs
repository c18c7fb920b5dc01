//! What the examples share: the arguments that choose address, cores, driver and limits.

use std::net::SocketAddr;

use clap::{Args, ValueEnum};
use ringwire::{CloseCode, Config, Cores, Driver, Engine, OutboxFull};
use tracing_subscriber::EnvFilter;

/// Where and how to serve.
#[derive(Args, Clone, Debug)]
pub struct ServerArgs {
    /// Where to listen; port 0 lets the kernel choose
    #[arg(long, default_value = "127.0.0.1:9001")]
    pub listen: SocketAddr,
    /// The cores that get a shard each: `all`, a count, or a list such as `@0,2`
    #[arg(long, default_value = "all", value_parser = parse_cores)]
    pub cores: Cores,
    /// How the kernel is spoken to
    #[arg(long, value_enum, default_value_t = DriverArg::Auto)]
    pub driver: DriverArg,
    /// The largest message that is received
    #[arg(long, default_value_t = 1024 * 1024)]
    pub message_bytes_max: usize,
    /// The largest number of fragments of a message
    #[arg(long, default_value_t = 16 * 1024)]
    pub fragments_max: u32,
    /// What may wait to be sent to one peer; the default grows with `--message-bytes-max`
    #[arg(long)]
    pub outbox_bytes_max: Option<usize>,
    /// What happens to a message for which there is no room
    #[arg(long, value_enum, default_value_t = OutboxFullArg::Close)]
    pub outbox_full: OutboxFullArg,
    /// How long a stop waits for the peers, in seconds
    #[arg(long, default_value_t = 10)]
    pub stop_seconds: u64,
}

/// A driver's name on the command line.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum DriverArg {
    /// io_uring where it can be had
    Auto,
    /// io_uring or an error
    IoUring,
    /// epoll
    Epoll,
}

/// A policy's name on the command line.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum OutboxFullArg {
    /// The connection is closed with 1013
    Close,
    /// The message is dropped
    DropNewest,
    /// Older messages are dropped for it
    DropOldest,
}

impl ServerArgs {
    /// The engine's configuration.
    #[must_use]
    pub fn config(&self) -> Config {
        let mut config = Config::new(self.listen);
        config.cores = self.cores.clone();
        config.driver = match self.driver {
            DriverArg::Auto => Driver::Auto,
            DriverArg::IoUring => Driver::IoUring,
            DriverArg::Epoll => Driver::Epoll,
        };
        config.message_bytes_max = self.message_bytes_max;
        config.fragments_max = self.fragments_max;
        // Room for some of the largest messages at least.
        config.outbox_bytes_max =
            self.outbox_bytes_max.unwrap_or((4 * self.message_bytes_max).max(1024 * 1024));
        config.outbox_bytes_high = config.outbox_bytes_max / 4;
        config.outbox_bytes_low = config.outbox_bytes_max / 16;
        config.outbox_full = match self.outbox_full {
            OutboxFullArg::Close => OutboxFull::Close(CloseCode::TRY_AGAIN_LATER),
            OutboxFullArg::DropNewest => OutboxFull::DropNewest,
            OutboxFullArg::DropOldest => OutboxFull::DropOldest,
        };
        config
    }
}

/// Writes the log to standard error; `RUST_LOG` says what of it.
pub fn log_to_stderr() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
}

/// Prints the one line that says that an example is ready.
pub fn print_ready(engine: &Engine) {
    println!(
        "listening on {}, driver {}, cores {:?}",
        engine.local_address(),
        engine.driver_name(),
        engine.cores()
    );
}

fn parse_cores(text: &str) -> Result<Cores, String> {
    if text == "all" {
        return Ok(Cores::All);
    }
    if let Some(list) = text.strip_prefix('@') {
        let cores: Result<Vec<usize>, _> = list.split(',').map(str::parse).collect();
        return cores.map(Cores::List).map_err(|error| format!("{list}: {error}"));
    }
    text.parse().map(Cores::Count).map_err(|error| format!("neither `all`, a count nor `@0,2`: {error}"))
}
