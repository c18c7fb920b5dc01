//! UTF-8 validation of text that arrives in pieces.
//!
//! Invariants: what is held back between two pieces is at most three bytes, never empty of hope (some
//! continuation makes it a character), and starts at a character border. It does not keep or copy the
//! text, and does not know where a message begins or ends: the caller calls `finish`.

use simdutf8::compat;

/// Checks a text piece by piece, failing at the first byte that no continuation can make valid.
///
/// RFC 6455 section 8.1 allows to fail late, but a peer that sends garbage should be stopped before the
/// rest of its message arrives.
///
/// ```
/// use ringwire::protocol::utf8::Utf8Validator;
///
/// let mut validator = Utf8Validator::new();
/// assert!(validator.feed("caf\u{e9}".as_bytes().split_at(4).0).is_ok());
/// assert!(validator.finish().is_err(), "the last character is cut");
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct Utf8Validator {
    pending: [u8; 3],
    pending_bytes: u8,
}

impl Utf8Validator {
    /// A validator at the start of a text.
    #[inline]
    pub const fn new() -> Self {
        Self { pending: [0; 3], pending_bytes: 0 }
    }

    /// Takes the next piece of the text.
    ///
    /// # Errors
    /// [`Utf8Error`] as soon as a byte has come that no continuation can make valid. The validator must
    /// not be fed again after that.
    #[inline]
    pub fn feed(&mut self, bytes: &[u8]) -> Result<(), Utf8Error> {
        let rest = if self.pending_bytes == 0 { bytes } else { self.complete_pending(bytes)? };
        match compat::from_utf8(rest) {
            Ok(_) => Ok(()),
            Err(error) if error.error_len().is_some() => Err(Utf8Error),
            Err(error) => self.hold_back(rest.get(error.valid_up_to()..).unwrap_or_default()),
        }
    }

    /// Ends the text and makes the validator ready for the next one.
    ///
    /// # Errors
    /// [`Utf8Error`] if the text stops inside a character.
    #[inline]
    pub fn finish(&mut self) -> Result<(), Utf8Error> {
        let is_cut = self.pending_bytes != 0;
        *self = Self::new();
        if is_cut { Err(Utf8Error) } else { Ok(()) }
    }

    /// Feeds the character held back byte by byte; returns what follows it.
    #[cold]
    fn complete_pending<'a>(&mut self, bytes: &'a [u8]) -> Result<&'a [u8], Utf8Error> {
        for (index, &byte) in bytes.iter().enumerate() {
            let [first, second, third] = self.pending;
            let mut character = [first, second, third, 0];
            // At most 3: `hold_back` sees to it.
            let held = usize::from(self.pending_bytes);
            character[held] = byte;
            match std::str::from_utf8(&character[..=held]) {
                Ok(_) => {
                    self.pending_bytes = 0;
                    return Ok(bytes.get(index + 1..).unwrap_or_default());
                }
                Err(error) if error.error_len().is_some() => return Err(Utf8Error),
                Err(_) => self.hold_back(&character[..=held])?,
            }
        }
        Ok(&[])
    }

    #[cold]
    fn hold_back(&mut self, tail: &[u8]) -> Result<(), Utf8Error> {
        // An incomplete character is at most three bytes; anything else would be a validator bug, and is
        // refused rather than trusted.
        let pending = self.pending.get_mut(..tail.len()).ok_or(Utf8Error)?;
        pending.copy_from_slice(tail);
        self.pending_bytes = tail.len() as u8;
        Ok(())
    }
}

/// The text is not UTF-8.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid UTF-8")]
pub struct Utf8Error;

const _: () = assert!(size_of::<Utf8Validator>() <= 8);
