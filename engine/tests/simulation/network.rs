//! The virtual network: two byte pipes of bounded capacity for each connection, with ends and resets.

/// One direction of a connection: what the kernels of both sides hold between them.
#[derive(Debug)]
pub(crate) struct Pipe {
    bytes: Vec<u8>,
    /// What of `bytes` has been read.
    start: usize,
    capacity: usize,
    ended: bool,
}

impl Pipe {
    fn new(capacity: usize) -> Self {
        Self { bytes: Vec::new(), start: 0, capacity, ended: false }
    }

    pub(crate) fn len(&self) -> usize {
        self.bytes.len() - self.start
    }

    pub(crate) fn room(&self) -> usize {
        self.capacity.saturating_sub(self.len())
    }

    /// Takes of `bytes` what there is room for, and says how many.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> usize {
        assert!(!self.ended, "a write behind the end of the stream");
        let taken = bytes.len().min(self.room());
        if self.start == self.bytes.len() {
            self.bytes.clear();
            self.start = 0;
        }
        self.bytes.extend_from_slice(&bytes[..taken]);
        taken
    }

    /// The next `bytes`, which must be there.
    pub(crate) fn read(&mut self, bytes: usize) -> &[u8] {
        self.start += bytes;
        &self.bytes[self.start - bytes..self.start]
    }

    /// There is room for everything from now on.
    pub(crate) fn widen(&mut self) {
        self.capacity = usize::MAX;
    }

    /// Nothing is written behind this.
    pub(crate) fn end(&mut self) {
        self.ended = true;
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.ended
    }

    /// The reader has read everything up to the end.
    pub(crate) fn is_at_end(&self) -> bool {
        self.ended && self.len() == 0
    }
}

/// A connection as the kernel sees it.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) to_server: Pipe,
    pub(crate) to_client: Pipe,
    /// One side has reset it: reads and writes fail from now on.
    pub(crate) is_reset: bool,
    /// The server has closed its socket.
    pub(crate) server_is_gone: bool,
}

impl Link {
    pub(crate) fn new(to_server: usize, to_client: usize) -> Self {
        Self {
            to_server: Pipe::new(to_server),
            to_client: Pipe::new(to_client),
            is_reset: false,
            server_is_gone: false,
        }
    }

    /// The server closes its socket: with a reset when it leaves something unsent or unread, as kernels do.
    pub(crate) fn close_server(&mut self, unsent: bool) {
        self.is_reset |= unsent || self.to_server.len() > 0;
        self.to_client.end();
        self.server_is_gone = true;
    }
}
