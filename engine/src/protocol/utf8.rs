//! UTF-8 validation of text that arrives in pieces.
//!
//! Invariant: what is held back between two pieces is the beginning of one character, so at most three
//! bytes, that some continuation would complete. It does not keep or copy the
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

    /// Whether the pieces so far end inside a character.
    #[inline]
    pub const fn is_mid_character(&self) -> bool {
        self.pending_bytes != 0
    }

    /// Takes the next piece of the text.
    ///
    /// # Errors
    /// [`Utf8Error`] as soon as a byte has come that no continuation can make valid. The validator must
    /// not be fed again after that.
    #[inline]
    pub fn feed(&mut self, bytes: &[u8]) -> Result<(), Utf8Error> {
        let rest = if self.is_mid_character() { self.complete_pending(bytes)? } else { bytes };
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
        let is_cut = self.is_mid_character();
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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Where a validator fed byte by byte fails.
    fn failing_index(bytes: &[u8]) -> Option<usize> {
        let mut validator = Utf8Validator::new();
        bytes.iter().position(|byte| validator.feed(std::slice::from_ref(byte)).is_err())
    }

    /// The first index at which the standard library calls the bytes so far wrong rather than incomplete.
    fn failing_index_of_std(bytes: &[u8]) -> Option<usize> {
        (0..bytes.len()).find(|&index| {
            std::str::from_utf8(&bytes[..=index]).is_err_and(|error| error.error_len().is_some())
        })
    }

    #[test]
    fn invalid_text_fails_at_the_first_hopeless_byte() {
        let table: [(&[u8], usize); 14] = [
            (b"\x80", 0),
            (b"\xBF", 0),
            (b"\xC0\x80", 0),
            (b"\xC1\xBF", 0),
            (b"\xF5\x80\x80\x80", 0),
            (b"\xFF", 0),
            (b"\xC2A", 1),
            (b"\xE0\x80\x80", 1),
            (b"\xE0\x9F\xBF", 1),
            (b"\xED\xA0\x80", 1),
            (b"\xF0\x8F\xBF\xBF", 1),
            (b"\xF4\x90\x80\x80", 1),
            (b"\xE2\x82A", 2),
            (b"\xF0\x9F\x98A", 3),
        ];
        for (bytes, index) in table {
            assert_eq!(failing_index(bytes), Some(index), "{bytes:x?}");
        }
    }

    #[test]
    fn all_two_byte_sequences_agree_with_std() {
        for first in 0..=u8::MAX {
            for second in 0..=u8::MAX {
                let bytes = [first, second];
                assert_eq!(failing_index(&bytes), failing_index_of_std(&bytes), "{bytes:x?}");
            }
        }
    }

    #[test]
    fn all_sequences_of_border_bytes_agree_with_std() {
        const BORDERS: [u8; 20] = [
            0x00, 0x7F, 0x80, 0x8F, 0x90, 0x9F, 0xA0, 0xBF, 0xC1, 0xC2, 0xDF, 0xE0, 0xE1, 0xED, 0xEF, 0xF0,
            0xF1, 0xF4, 0xF5, 0xFF,
        ];
        for first in BORDERS {
            for second in BORDERS {
                for third in BORDERS {
                    for fourth in BORDERS {
                        let bytes = [first, second, third, fourth];
                        assert_eq!(failing_index(&bytes), failing_index_of_std(&bytes), "{bytes:x?}");
                    }
                }
            }
        }
    }

    #[test]
    fn every_split_of_valid_text_is_accepted() {
        let text = "a\u{7f}\u{80}\u{7ff}\u{800}\u{d7ff}\u{e000}\u{ffff}\u{10000}\u{10ffff}z".as_bytes();
        for first in 0..=text.len() {
            for second in first..=text.len() {
                let mut validator = Utf8Validator::new();
                for piece in [&text[..first], &text[first..second], &text[second..]] {
                    assert_eq!(validator.feed(piece), Ok(()));
                }
                assert_eq!(validator.finish(), Ok(()));
            }
        }
    }

    #[test]
    fn text_cut_inside_a_character_fails_at_its_end() {
        for text in ["\u{e9}", "\u{20ac}", "\u{1f600}"] {
            for end in 1..text.len() {
                let mut validator = Utf8Validator::new();
                assert_eq!(validator.feed(&text.as_bytes()[..end]), Ok(()));
                assert_eq!(validator.finish(), Err(Utf8Error));
                assert_eq!(validator.feed(text.as_bytes()), Ok(()), "ready for the next text");
            }
        }
    }

    proptest! {
        #[test]
        fn chunked_text_agrees_with_std(
            text in prop_oneof![
                any::<String>().prop_map(String::into_bytes),
                any::<Vec<u8>>(),
                "[a-z\u{80}-\u{10ffff}]{0,200}".prop_map(String::into_bytes),
            ],
            chunk_bytes in 1_usize..70,
        ) {
            let mut validator = Utf8Validator::new();
            let mut result = text.chunks(chunk_bytes).try_for_each(|chunk| validator.feed(chunk));
            result = result.and_then(|()| validator.finish());
            prop_assert_eq!(result.is_ok(), std::str::from_utf8(&text).is_ok());
        }
    }
}
